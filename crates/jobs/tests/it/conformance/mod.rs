//! What every backend does alike.

mod failing;
mod flows;
mod inspecting;
mod leasing;
mod limits;
mod pausing;
mod pushing;
mod results;
mod schedules;
mod stopping;
mod unique;
mod workflows;
mod working;

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
        pushes_of_many_tasks_are_each_answered_with_their_own
        a_job_that_the_database_refuses_fails_alone
        a_dropped_pusher_changes_nothing_for_the_others
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
        an_attempt_that_ends_forgives_crashes
        those_that_ran_beside_a_killer_are_parted_from_it
        a_snoozed_job_runs_later_and_counts_no_attempt
        an_error_may_set_the_wait_itself
        a_type_may_have_a_schedule_of_its_own
        a_discarded_job_is_dead_at_once
        a_type_may_have_a_timeout_of_its_own;
    leasing:
        the_jobs_of_a_killed_worker_start_again
        a_long_job_keeps_its_lease
        a_worker_that_lost_its_lease_cannot_complete
        a_lease_that_a_living_worker_gives_back_late_is_no_crash
        two_workers_never_run_one_job_at_once;
    schedules:
        each_tick_runs_once_in_the_whole_fleet
        missed_ticks_run_as_asked
        a_tick_that_is_a_little_late_is_not_missed
        the_same_schedule_changes_nothing_and_another_counts_from_now
        a_paused_schedule_passes_its_ticks_over
        a_worker_wakes_for_the_tick
        every_attempt_knows_its_tick
        jitter_delays_a_start_and_no_tick
        unique_runs_do_not_overlap;
    workflows:
        a_job_starts_when_all_that_it_waits_for_are_done
        a_workflow_is_pushed_in_a_transaction_or_not_at_all
        predecessors_that_end_at_once_free_a_job_once
        what_waits_for_a_dead_job_is_abandoned_unless_it_runs_anyway
        a_job_comes_back_when_nothing_it_waits_for_is_dead
        an_abandoned_job_brought_back_with_its_cause_waits_for_it
        a_job_that_kills_its_workers_abandons_what_waits_for_it
        a_job_that_runs_twice_ends_once
        ten_thousand_jobs_have_one_callback
        a_workflow_that_makes_no_sense_is_refused
        a_workflow_asks_for_room_for_its_first_jobs
        a_cancelled_or_discarded_job_takes_its_workflow_along;
    results:
        whoever_waits_gets_the_result
        whoever_waits_hears_of_a_death
        a_result_is_unknown_once_it_is_kept_no_longer
        a_job_reads_the_results_of_those_it_waited_for
        whoever_looks_sees_how_far_a_job_has_come;
    stopping:
        a_stopping_worker_lets_its_jobs_end
        what_outlasts_the_grace_returns_to_the_queue
        an_error_while_stopping_is_no_failure
        a_stop_under_load_loses_and_repeats_nothing;
    working:
        an_old_payload_is_upcast_and_a_newer_waits_for_a_newer_worker
        a_result_is_kept_where_the_type_says_so
        progress_is_written_while_the_job_runs
        a_handler_knows_its_deadline_and_its_pusher
        a_queue_takes_no_more_places_than_it_may
        a_type_takes_no_more_places_than_it_may
        long_jobs_are_left_to_other_workers
        what_was_fetched_ahead_and_cannot_start_goes_back;
    inspecting:
        a_list_has_what_the_filter_means
        pages_follow_one_another_without_gap_or_repetition
        all_is_shown_of_a_job
        a_cancelled_job_does_not_run
        a_running_job_is_taken_from_its_worker
        actions_on_many_touch_what_the_filter_means
        jobs_that_come_back_start_in_the_order_in_which_they_were_pushed
        stats_tell_queues_and_types_apart;
    limits:
        a_queue_runs_no_more_than_its_limit_in_all_workers
        a_job_that_ends_under_a_limit_makes_room_at_once
        a_key_runs_no_more_than_its_limit_in_all_workers
        a_name_runs_no_more_than_its_limit_and_others_pass_it
        keys_that_are_held_back_do_not_hold_up_the_others
        a_rate_holds_in_all_workers
        the_slots_of_a_killed_worker_are_free_again
        no_tenant_waits_for_the_backlog_of_another
        jobs_of_a_key_start_by_priority_and_age
        the_first_keyed_job_of_a_queue_wakes_an_idle_worker
        limits_are_kept_and_checked
        a_full_queue_refuses_pushes_until_it_has_room;
    unique:
        a_unique_job_is_stored_once_while_it_lives
        a_key_may_outlive_its_job_for_its_window
        a_window_ends_while_the_job_waits
        a_running_job_may_let_one_follow_it
        a_dead_job_holds_its_key_if_asked_to
        keys_of_different_names_never_meet
        of_those_with_one_key_in_a_batch_the_first_is_stored
        of_many_that_push_one_key_at_once_one_stores_it
        batches_with_the_same_keys_in_other_orders_do_not_deadlock
        a_transaction_that_rolls_back_gives_its_keys_back
        what_makes_no_sense_as_a_key_is_refused
        keys_that_nobody_holds_leave_the_table;
    pausing:
        a_paused_queue_starts_no_job
        a_pause_in_full_flight_stops_the_flow
        a_pause_outlives_every_process
        a_resume_wakes_an_idle_worker;
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
