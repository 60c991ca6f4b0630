//! Several Redis servers that know of each other.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Server,
    server::{PRIMARY_NAME, START_DEADLINE, free_port},
};

const SLOTS: usize = 16384;

/// A primary and its replica, watched by one sentinel, which makes the replica the primary when that is gone for 200 ms.
pub struct RedisSentinel {
    servers: [Server; 2],
    sentinel: Server,
}

impl RedisSentinel {
    /// Starts them; returns once the sentinel knows of both.
    pub fn start() -> RedisSentinel {
        RedisSentinel::with(&[])
    }

    /// The same with lines of one's own in the `redis.conf` of primary and replica.
    pub fn with(lines: &[&str]) -> RedisSentinel {
        let primary = Server::redis_with(lines);
        let follow = format!("replicaof 127.0.0.1 {}", primary.port());
        let replica = Server::redis_with(&[lines, &[&follow]].concat());
        until("the replica follows", || replica.says(&["INFO", "replication"], "master_link_status:up"));
        let sentinel = Server::sentinel(&primary);
        let group = RedisSentinel { servers: [primary, replica], sentinel };
        until("the sentinel knows the replica", || {
            group.sentinel.says(&["SENTINEL", "REPLICAS", PRIMARY_NAME], "master-link-status\nok")
        });
        group
    }

    /// `redis+sentinel://host:port/name`: where the sentinel is, and what it calls the primary.
    pub fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/{PRIMARY_NAME}", self.sentinel.port())
    }

    /// Which the sentinel says is the primary now.
    pub fn primary(&mut self) -> &mut Server {
        let index = self.primary_index();
        &mut self.servers[index]
    }

    /// The other one.
    pub fn replica(&mut self) -> &mut Server {
        let index = 1 - self.primary_index();
        &mut self.servers[index]
    }

    /// The sentinel itself.
    pub fn sentinel(&mut self) -> &mut Server {
        &mut self.sentinel
    }

    /// Has the two change their roles, both alive; returns once both have.
    pub fn failover(&mut self) {
        let old = self.primary_index();
        until("the sentinel agrees to a failover", || {
            self.sentinel.says(&["SENTINEL", "FAILOVER", PRIMARY_NAME], "OK")
        });
        self.settled_on(1 - old);
        until("the old primary follows", || self.servers[old].says(&["ROLE"], "slave"));
    }

    /// Waits until the sentinel has replaced a primary that was killed.
    ///
    /// # Panics
    /// When it has not within half a minute.
    pub fn failed_over(&mut self) {
        let dead = self.servers.iter().position(|server| !server.is_running());
        self.settled_on(1 - dead.expect("the primary was killed"));
    }

    fn settled_on(&self, index: usize) {
        until("the sentinel names another primary", || self.primary_index() == index);
        until("it takes its part", || self.servers[index].says(&["ROLE"], "master"));
    }

    fn primary_index(&self) -> usize {
        let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME];
        let answer = self.sentinel.redis_cli(&command).expect("the sentinel answers");
        let port = answer.lines().nth(1).and_then(|port| port.parse::<u16>().ok());
        let index = self.servers.iter().position(|server| Some(server.port()) == port);
        index.unwrap_or_else(|| panic!("the sentinel names no primary of ours: {answer}"))
    }
}

/// Three primaries that share the slots, without replicas.
pub struct RedisCluster {
    nodes: [Server; 3],
}

impl RedisCluster {
    /// Starts them; returns once each says that the cluster is well.
    pub fn start() -> RedisCluster {
        RedisCluster::with(&[])
    }

    /// The same with lines of one's own in the `redis.conf` of each node.
    pub fn with(lines: &[&str]) -> RedisCluster {
        let nodes = [0, 1, 2].map(|_| {
            // Else the bus listens at the port plus 10000, which there may not be.
            let bus = format!("cluster-port {}", free_port());
            let own = ["cluster-enabled yes", "cluster-node-timeout 2000", &bus];
            Server::redis_with(&[&own[..], lines].concat())
        });
        let says_ok = |node: &Server, command: &[&str]| {
            let answer = node.redis_cli(command);
            assert_eq!(answer.as_deref(), Ok("OK"), "{command:?}");
        };
        for (index, node) in nodes.iter().enumerate() {
            let bound = |index| index * SLOTS / nodes.len();
            let (first, last) = (bound(index).to_string(), (bound(index + 1) - 1).to_string());
            says_ok(node, &["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            says_ok(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for node in &nodes[1..] {
            let bus = node.redis_cli(&["CONFIG", "GET", "cluster-port"]).expect("the node answers");
            let bus = bus.lines().nth(1).expect("the node has such a setting").to_owned();
            says_ok(&nodes[0], &["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus]);
        }
        let cluster = RedisCluster { nodes };
        cluster.well();
        cluster
    }

    /// `redis+cluster://…`, which names all nodes.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// The nodes, to kill and restart.
    pub fn nodes(&mut self) -> &mut [Server; 3] {
        &mut self.nodes
    }

    /// Waits until each node says that the cluster is well, as after a restart.
    ///
    /// # Panics
    /// When that is not so within half a minute.
    pub fn well(&self) {
        for node in &self.nodes {
            until("the cluster is well", || {
                node.says(&["CLUSTER", "INFO"], "cluster_state:ok")
                    && node.says(&["CLUSTER", "INFO"], "cluster_known_nodes:3")
            });
        }
    }
}

impl Server {
    fn says(&self, command: &[&str], what: &str) -> bool {
        self.redis_cli(command).is_ok_and(|answer| answer.replace('\r', "").contains(what))
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + START_DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
