//! What every backend does alike.

mod failing;
mod leasing;
mod pushing;
mod stopping;

/// Makes a test for each backend out of each function.
macro_rules! conformance {
    ($($module:ident: $($test:ident)*;)*) => {
        #[cfg(feature = "postgres")]
        mod on_postgres {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$module::$test::<crate::support::PostgresFixture>().await;
                }
            )*)*
        }
        #[cfg(feature = "sqlite")]
        mod on_sqlite {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$module::$test::<crate::support::SqliteFixture>().await;
                }
            )*)*
        }
    };
}

conformance! {
    pushing:
        a_pushed_job_runs
        a_rolled_back_transaction_pushes_nothing
        a_committed_transaction_pushes_all
        a_delayed_job_waits
        urgent_jobs_start_first
        five_thousand_pushed_at_once_all_run
        any_text_survives
        a_push_wakes_an_idle_worker
        a_wake_after_the_commit_wakes_an_idle_worker
        a_worker_leaves_other_queues_alone
        every_queue_of_a_worker_gets_its_turn
        eight_may_migrate_at_once
        a_worker_without_tables_says_so;
    failing:
        a_failing_job_is_retried_and_dies_with_its_errors
        the_wait_between_attempts_comes_from_the_config
        a_panic_is_a_failure
        a_timeout_is_a_failure
        an_unknown_job_is_parked
        an_undecodable_job_is_parked
        a_dead_job_comes_back_with_all_its_attempts
        only_the_last_ten_errors_are_kept
        a_job_that_kills_its_workers_is_parked
        an_attempt_that_ends_forgives_crashes;
    leasing:
        the_jobs_of_a_killed_worker_start_again
        a_long_job_keeps_its_lease
        a_worker_that_lost_its_lease_cannot_complete
        a_lease_that_a_living_worker_gives_back_late_is_no_crash
        two_workers_never_run_one_job_at_once;
    stopping:
        a_stopping_worker_lets_its_jobs_end
        what_outlasts_the_grace_returns_to_the_queue
        an_error_while_stopping_is_no_failure
        a_stop_under_load_loses_and_repeats_nothing;
}

/// The same on NATS, for what holds there. What does not is refused, or tested in `nats.rs` as it is.
#[cfg(feature = "nats")]
macro_rules! conformance_on_nats {
    ($($module:ident: $($test:ident)*;)*) => {
        mod on_nats {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$module::$test::<crate::support::NatsFixture>().await;
                }
            )*)*
        }
    };
}

#[cfg(feature = "nats")]
conformance_on_nats! {
    pushing:
        a_pushed_job_runs
        five_thousand_pushed_at_once_all_run
        any_text_survives
        a_push_wakes_an_idle_worker
        a_worker_leaves_other_queues_alone
        every_queue_of_a_worker_gets_its_turn
        eight_may_migrate_at_once
        a_worker_without_tables_says_so;
    failing:
        a_failing_job_is_retried_and_dies_with_its_errors
        the_wait_between_attempts_comes_from_the_config
        a_panic_is_a_failure
        a_timeout_is_a_failure
        an_unknown_job_is_parked
        an_undecodable_job_is_parked
        a_dead_job_comes_back_with_all_its_attempts
        only_the_last_ten_errors_are_kept
        a_job_that_kills_its_workers_is_parked
        an_attempt_that_ends_forgives_crashes;
    leasing:
        the_jobs_of_a_killed_worker_start_again
        a_long_job_keeps_its_lease
        two_workers_never_run_one_job_at_once;
    stopping:
        a_stopping_worker_lets_its_jobs_end
        a_stop_under_load_loses_and_repeats_nothing;
}
