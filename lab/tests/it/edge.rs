//! The experiments on the edge: their instances are this program once more.

use std::net::{Ipv4Addr, TcpStream};

use greenwave_lab::cli::{self, LabArgs};
use greenwave_lab::experiments::{Source, balance, edge_cache, scale_out};

use crate::quick::{self, Run, fact};

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    lab: LabArgs,
}

/// An instance, in the processes that the next tests start; the list of the experiments elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_or_a_list() {
    use clap::Parser;

    cli::run(Program::parse_from(["lab", "list"]).lab).await.unwrap();
}

fn source() -> Source {
    let program = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let instance = [&*program, "--exact", "edge::an_instance_or_a_list", "--nocapture"].map(String::from);
    Source { instance: instance.to_vec(), orders: 5_000, ..Source::default() }
}

/// Sees that nobody listens where the run told of instances.
fn left_no_instance(run: &Run) {
    let note = run.notes.iter().find(|note| note.starts_with("started instances on ports ")).unwrap();
    let ports: Vec<u16> = note.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    assert_eq!(ports.len(), 4, "{note}");
    for port in ports {
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "{port} lives on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_instances_answer_more_than_one_and_are_ended() {
    let run = quick::run(&scale_out::experiment(source())).await;
    run.good(1.4);
    left_no_instance(&run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_measures_spares_a_slow_instance() {
    let run = quick::run(&balance::experiment(source())).await;
    let report = run.good(1.0);
    assert_eq!(fact(report, "instances"), Some("4 processes with 2 workers each, one 3 times slower"));
    left_no_instance(&run);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_s_cache_saves_the_service_work() {
    let run = quick::run(&edge_cache::experiment(source())).await;
    run.good(1.0);
}

#[tokio::test]
async fn without_a_command_there_are_no_instances() {
    for experiment in [scale_out::experiment(Source::default()), balance::experiment(Source::default())] {
        let refusal = quick::run(&experiment).await.refusal();
        assert!(refusal.contains("`Source::instance`"), "{refusal}");
    }
}
