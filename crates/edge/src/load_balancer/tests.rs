//! The balancer's promises, one by one; `simulation` shows them at work.

use std::time::Duration;

use http::StatusCode;
use tokio::time::{advance, sleep};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn upstream(port: u16) -> Upstream {
    Upstream::new(format!("app-{port}"), SocketAddr::from(([127, 0, 0, 1], port)))
}

pub(super) fn fixed(ports: impl IntoIterator<Item = u16>) -> LoadBalancer {
    balancer(BalanceConfig::default(), ports)
}

fn balancer(config: BalanceConfig, ports: impl IntoIterator<Item = u16>) -> LoadBalancer {
    LoadBalancer::new(config, ports.into_iter().map(upstream).collect::<Upstreams>().into_watch())
}

fn changing(ports: impl IntoIterator<Item = u16>) -> (watch::Sender<Upstreams>, LoadBalancer) {
    let (sender, receiver) = watch::channel(ports.into_iter().map(upstream).collect());
    (sender, LoadBalancer::new(BalanceConfig::default(), receiver))
}

fn change(sender: &watch::Sender<Upstreams>, port: u16, change: impl Fn(&mut Upstream)) {
    sender.send_modify(|list| {
        let mut all: Vec<Upstream> = list.iter().cloned().collect();
        all.iter_mut().filter(|upstream| upstream.address.port() == port).for_each(&change);
        *list = all.into_iter().collect();
    });
}

/// Picks that many at once.
fn held(balancer: &LoadBalancer, count: usize) -> Vec<Pick> {
    (0..count).filter_map(|_| balancer.try_pick(None, &[])).collect()
}

/// The ports of that many picks at once, in order.
fn ports(balancer: &LoadBalancer, count: usize) -> Vec<u16> {
    let mut ports: Vec<u16> = held(balancer, count).iter().map(|pick| pick.address().port()).collect();
    ports.sort_unstable();
    ports
}

/// Lets the upstream with that port answer so.
async fn answer(balancer: &LoadBalancer, port: u16, latency: Duration, status: StatusCode) {
    let others: Vec<SocketAddr> =
        held(balancer, 20).iter().map(Pick::address).filter(|address| address.port() != port).collect();
    let mut pick = balancer.try_pick(None, &others).unwrap();
    assert_eq!(pick.address().port(), port);
    advance(latency).await;
    pick.answered(status);
}

async fn fail(balancer: &LoadBalancer, port: u16, times: usize) {
    for _ in 0..times {
        answer(balancer, port, Duration::from_millis(1), StatusCode::BAD_GATEWAY).await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_at_once_go_to_all_alike() {
    assert_eq!(ports(&fixed(1..=3), 6), [1, 1, 2, 2, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_slower_an_upstream_the_less_it_has_in_flight() {
    let balancer = fixed(1..=2);
    answer(&balancer, 1, Duration::from_millis(10), StatusCode::OK).await;
    answer(&balancer, 2, Duration::from_millis(31), StatusCode::OK).await;
    assert_eq!(ports(&balancer, 4), [1, 1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_upstream_is_asked_again_after_a_while() {
    let balancer = fixed(1..=2);
    answer(&balancer, 1, Duration::from_millis(10), StatusCode::OK).await;
    answer(&balancer, 2, SECOND, StatusCode::OK).await;
    let mut at_two = 0;
    for _ in 0..1000 {
        let mut pick = balancer.try_pick(None, &[]).unwrap();
        advance(Duration::from_millis(10)).await;
        at_two += usize::from(pick.address().port() == 2);
        pick.answered(StatusCode::OK);
    }
    assert!((100..500).contains(&at_two), "{at_two} of 1000, in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn weights_share_what_is_in_flight() {
    let (sender, balancer) = changing(1..=2);
    change(&sender, 2, |upstream| upstream.weight = 3);
    answer(&balancer, 1, Duration::from_millis(10), StatusCode::OK).await;
    answer(&balancer, 2, Duration::from_millis(10), StatusCode::OK).await;
    let at_two = ports(&balancer, 40).into_iter().filter(|port| *port == 2).count();
    assert_eq!(at_two, 30);
}

#[tokio::test(start_paused = true)]
async fn round_robin_takes_turns_by_weight() {
    let config = BalanceConfig { strategy: Strategy::RoundRobin, ..Default::default() };
    let mut list = [upstream(1), upstream(2), upstream(3)];
    list[1].weight = 2;
    list[2].healthy = false;
    let balancer = LoadBalancer::new(config, Upstreams::from_iter(list).into_watch());
    let ports: Vec<u16> = held(&balancer, 6).iter().map(|pick| pick.address().port()).collect();
    assert_eq!(ports, [1, 2, 2, 1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn of_many_upstreams_none_is_left_out_and_none_is_crowded() {
    let balancer = fixed(1..=100);
    let ports = ports(&balancer, 1000);
    let most = (1..=100).map(|port| ports.iter().filter(|other| **other == port).count()).max();
    // At random it would be about 20.
    assert!(most.is_some_and(|most| (10..=14).contains(&most)), "{most:?}");
    let sick = balancer_with_one_of(100);
    assert_eq!(sick.try_pick(None, &[]).map(|pick| pick.address().port()), Some(77));
}

fn balancer_with_one_of(count: u16) -> LoadBalancer {
    let mut list: Vec<Upstream> = (1..=count).map(upstream).collect();
    list.iter_mut().for_each(|upstream| upstream.healthy = upstream.address.port() == 77);
    LoadBalancer::new(BalanceConfig::default(), Upstreams::from_iter(list).into_watch())
}

#[tokio::test(start_paused = true)]
async fn a_refusing_upstream_is_left_alone_until_it_passes_a_check() {
    let (sender, balancer) = changing(1..=2);
    change(&sender, 1, |upstream| upstream.checks = 1);
    change(&sender, 2, |upstream| upstream.checks = 1);
    for mut pick in held(&balancer, 2) {
        if pick.address().port() == 1 {
            pick.refused();
        }
    }
    advance(60 * SECOND).await;
    assert_eq!(ports(&balancer, 3), [2, 2, 2]);
    change(&sender, 1, |upstream| upstream.checks += 1);
    assert_eq!(ports(&balancer, 2), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_unchecked_upstream_is_tried_again_a_second_after_it_refused() {
    let balancer = fixed([1]);
    balancer.try_pick(None, &[]).unwrap().refused();
    assert!(balancer.try_pick(None, &[]).is_none());
    let begun = Instant::now();
    assert!(balancer.pick(None, &[], begun + 5 * SECOND, Priority::Normal).await.is_ok());
    assert_eq!(begun.elapsed().as_secs_f64().round(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_tried_upstream_is_picked_again_only_when_no_other_is_left() {
    let balancer = fixed(1..=2);
    let all = [upstream(1).address, upstream(2).address];
    assert!((0..8).all(|_| balancer.try_pick(None, &all[..1]).unwrap().address() == all[1]));
    assert!(balancer.try_pick(None, &all).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_gets_the_upstream_that_becomes_healthy() {
    let (sender, balancer) = changing([1]);
    change(&sender, 1, |upstream| upstream.healthy = false);
    let deadline = Instant::now() + 5 * SECOND;
    let (picked, ()) = tokio::join!(balancer.pick(None, &[], deadline, Priority::Normal), async {
        sleep(4 * SECOND).await;
        change(&sender, 1, |upstream| upstream.healthy = true);
    });
    assert_eq!(picked.unwrap().name(), "app-1");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_gets_no_more_than_its_limit_and_the_rest_waits() {
    let overload = OverloadConfig { min_in_flight: 1, max_in_flight: 2, ..Default::default() };
    let (sender, receiver) = watch::channel([upstream(1), upstream(2)].into_iter().collect::<Upstreams>());
    let config = BalanceConfig::default();
    let balancer = LoadBalancer::limited(config, overload, receiver, Released::default());
    let pick = async |priority| {
        let deadline = Instant::now() + 5 * SECOND;
        balancer.pick(None, &[], deadline, priority).await
    };
    let mut picks = Vec::new();
    for _ in 0..4 {
        picks.push(pick(Priority::Normal).await.unwrap());
    }
    assert!(pick(Priority::High).await.is_ok(), "who has priority waits for nobody");
    let begun = Instant::now();
    let (waited, ()) = tokio::join!(pick(Priority::Normal), async {
        sleep(SECOND / 10).await;
        // Its answer has a long body, but it waits no longer.
        picks[0].answered(StatusCode::OK);
    });
    assert_eq!((waited.unwrap().address(), begun.elapsed()), (picks[0].address(), SECOND / 10));
    picks.push(pick(Priority::Normal).await.unwrap());
    let (waited, ()) = tokio::join!(pick(Priority::Normal), async {
        sleep(SECOND / 10).await;
        sender.send_replace([1, 2, 3].map(upstream).into_iter().collect());
        assert_eq!(balancer.healthy(), 3);
    });
    assert_eq!(waited.unwrap().name(), "app-3");
    let begun = Instant::now();
    let picks = [pick(Priority::Normal).await, pick(Priority::Normal).await, pick(Priority::Normal).await];
    assert!(picks[..2].iter().all(Result::is_ok));
    assert!(matches!(picks[2], Err(Refusal::Overloaded)));
    assert_eq!(begun.elapsed(), SECOND, "the queue's own patience");
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_gets_no_more_before_it_answers() {
    let balancer = fixed(1..=2);
    for port in [1, 2] {
        answer(&balancer, port, Duration::from_millis(10), StatusCode::OK).await;
    }
    let others = [upstream(1).address];
    let silent = balancer.try_pick(None, &others).unwrap();
    advance(SECOND / 4).await;
    assert_eq!(ports(&balancer, 20).into_iter().filter(|port| *port == 2).count(), 0);
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn idle_open_answers_weigh_little() {
    let balancer = fixed(1..=2);
    for port in [1, 2] {
        answer(&balancer, port, Duration::from_millis(10), StatusCode::OK).await;
    }
    let mut open: Vec<Pick> =
        (0..1000).filter_map(|_| balancer.try_pick(None, &[upstream(1).address])).collect();
    open.iter_mut().for_each(|pick| pick.answered(StatusCode::OK));
    let at_two = ports(&balancer, 20).into_iter().filter(|port| *port == 2).count();
    assert!((6..=7).contains(&at_two), "{at_two} of 20");
}

#[tokio::test(start_paused = true)]
async fn patience_ends_when_nothing_becomes_healthy() {
    let (sender, balancer) = changing([]);
    for _ in 0..2 {
        let begun = Instant::now();
        let picked = balancer.pick(None, &[], begun + 5 * SECOND, Priority::Normal).await;
        assert!(matches!(picked, Err(Refusal::NoUpstream)));
        assert_eq!(begun.elapsed().as_secs(), 5);
        // And so when nobody supplies a list any more.
        let _ = sender.send(Upstreams::default());
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_fails_time_and_again_is_left_alone_ever_longer() {
    let balancer = fixed(1..=2);
    for round in 1..=12 {
        fail(&balancer, 1, 5).await;
        let begun = Instant::now();
        while ports(&balancer, 2) == [2, 2] {
            advance(SECOND).await;
        }
        assert_eq!(begun.elapsed().as_secs().div_ceil(10) * 10, (30 * round).min(300));
    }
    // Until it has done well for as long as the longest ejection.
    advance(301 * SECOND).await;
    fail(&balancer, 1, 5).await;
    advance(31 * SECOND).await;
    assert_eq!(ports(&balancer, 2), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_success_in_between_forgives_failures() {
    let balancer = fixed(1..=2);
    for _ in 0..3 {
        fail(&balancer, 1, 4).await;
        answer(&balancer, 1, Duration::from_millis(1), StatusCode::INTERNAL_SERVER_ERROR).await;
    }
    assert_eq!(ports(&balancer, 2), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn half_of_the_healthy_upstreams_are_never_ejected() {
    let (sender, balancer) = changing(1..=5);
    for port in 1..=4 {
        fail(&balancer, port, 5).await;
    }
    assert_eq!(ports(&balancer, 3), [3, 4, 5]);
    // One of the others goes: then two of four are ejected, and when another goes one of them comes back.
    change(&sender, 5, |upstream| upstream.healthy = false);
    assert_eq!(ports(&balancer, 2), [3, 4]);
    change(&sender, 4, |upstream| upstream.healthy = false);
    let mut usable = ports(&balancer, 40);
    usable.dedup();
    assert_eq!(usable, [1, 3]);
    let alone = fixed([1]);
    fail(&alone, 1, 10).await;
    assert_eq!(ports(&alone, 1), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_upstream_is_back_at_once_and_starts_slowly() {
    let (sender, balancer) = changing(1..=2);
    for port in [1, 2] {
        answer(&balancer, port, Duration::from_millis(10), StatusCode::OK).await;
    }
    fail(&balancer, 1, 5).await;
    for healthy in [false, true] {
        change(&sender, 1, |upstream| upstream.healthy = healthy);
        assert_eq!(balancer.healthy(), 1 + usize::from(healthy));
    }
    let share = async |passed: Duration| {
        advance(passed).await;
        ports(&balancer, 110).into_iter().filter(|port| *port == 1).count()
    };
    assert_eq!(share(Duration::ZERO).await, 10);
    assert_eq!(share(5 * SECOND).await, 37);
    assert_eq!(share(5 * SECOND).await, 55);
}

#[tokio::test(start_paused = true)]
async fn a_draining_upstream_gets_nothing_new_and_is_released_when_it_is_idle() {
    let (sender, receiver) = watch::channel([upstream(1), upstream(2)].into_iter().collect::<Upstreams>());
    let released = Released::default();
    let balancer = LoadBalancer::limited(
        BalanceConfig::default(),
        OverloadConfig::default(),
        receiver,
        Arc::clone(&released),
    );
    let idle = || released.borrow().clone();
    let picks = held(&balancer, 2);
    change(&sender, 1, |upstream| upstream.draining = true);
    assert_eq!(ports(&balancer, 2), [2, 2]);
    assert_eq!(idle(), []);
    drop(picks);
    assert_eq!(idle(), [upstream(1).address]);
    // One that is idle already, which nobody asks.
    change(&sender, 2, |upstream| upstream.draining = true);
    assert!(tokio::time::timeout(SECOND, balancer.follow()).await.is_err());
    assert_eq!(idle(), [upstream(1).address, upstream(2).address]);
    sender.send_replace([upstream(2)].into_iter().collect());
    assert_eq!(ports(&balancer, 1), [2]);
    assert_eq!(idle(), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_an_upstream_survives_changes_of_the_list() {
    let (sender, balancer) = changing(1..=2);
    answer(&balancer, 1, Duration::from_millis(10), StatusCode::OK).await;
    answer(&balancer, 2, SECOND, StatusCode::OK).await;
    sender.send_replace([3, 2, 1].map(upstream).into_iter().collect());
    // The new one gets a single request until it has answered.
    let mut usable = ports(&balancer, 10);
    usable.dedup_by(|other, port| *other == 1 && *port == 1);
    assert_eq!(usable, [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_at_once_does_not_look_fast() {
    let config = BalanceConfig { eject_after: 0, ..Default::default() };
    let balancer = balancer(config, 1..=2);
    answer(&balancer, 1, Duration::from_millis(10), StatusCode::OK).await;
    answer(&balancer, 2, Duration::from_millis(10), StatusCode::OK).await;
    for _ in 0..50 {
        answer(&balancer, 1, Duration::from_micros(10), StatusCode::SERVICE_UNAVAILABLE).await;
    }
    assert_eq!(ports(&balancer, 4), [1, 1, 2, 2]);
}

mod stickiness {
    use super::*;

    fn home(balancer: &LoadBalancer, key: u64) -> u16 {
        balancer.try_pick(Some(key), &[]).unwrap().address().port()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_stays_and_only_those_move_whose_upstream_goes() {
        let (sender, balancer) = changing(1..=4);
        let before: Vec<u16> = (0..1000).map(|key| home(&balancer, key)).collect();
        for port in 1..=4 {
            let clients = before.iter().filter(|home| **home == port).count();
            assert!((200..300).contains(&clients), "{clients} of 1000 clients at {port}");
        }
        change(&sender, 3, |upstream| upstream.healthy = false);
        for (key, before) in (0..).zip(&before) {
            let now = home(&balancer, key);
            assert!(now == *before || *before == 3 && now != 3);
        }
        change(&sender, 3, |upstream| upstream.healthy = true);
        assert_eq!(balancer.healthy(), 4);
        advance(11 * SECOND).await;
        let after: Vec<u16> = (0..1000).map(|key| home(&balancer, key)).collect();
        assert!(after == before);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_shared_by_weight() {
        let (sender, balancer) = changing(1..=2);
        change(&sender, 2, |upstream| upstream.weight = 4);
        let clients = (0..1000).filter(|key| home(&balancer, *key) == 2).count();
        assert!((760..840).contains(&clients), "{clients} of 1000");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hot_client_does_not_drown_its_upstream() {
        let balancer = fixed(1..=4);
        let picks: Vec<Pick> = (0..400).filter_map(|_| balancer.try_pick(Some(7), &[])).collect();
        let home = picks[0].address();
        assert!(picks[..8].iter().all(|pick| pick.address() == home), "a few at once stay together");
        for port in 1..=4 {
            let count = picks.iter().filter(|pick| pick.address().port() == port).count();
            assert!(count <= 151, "{count} of 400");
        }
    }
}
