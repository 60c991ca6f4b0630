use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use greenwave_cache::{Cache, Cached, LoadError, Loaded};
use tokio::task::JoinSet;

use crate::support::{Failed, Gate};

/// As the state of a service has it: a type that can be written down.
#[derive(Clone)]
struct App {
    squares: Cached<u64, u64, Failed>,
}

async fn square(number: u64) -> Result<Option<u64>, Failed> {
    match number {
        0 => Err(Failed),
        1 => Ok(None),
        _ => Ok(Some(number * number)),
    }
}

#[tokio::test]
async fn a_wrapped_function_is_called_once_for_what_is_asked_often() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let function = move |number| {
        counted.fetch_add(1, Ordering::SeqCst);
        square(number)
    };
    let app = App { squares: Cache::builder("square").build().wrap(function) };
    for _ in 0..3 {
        assert_eq!(app.clone().squares.call(&7).await.unwrap().as_deref(), Some(&49));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    app.squares.cache().invalidate(&7).await;
    assert_eq!(app.squares.call(&7).await.unwrap().as_deref(), Some(&49));
    assert_eq!(calls.load(Ordering::SeqCst), 2, "an invalidation is heeded");
}

#[tokio::test]
async fn a_wrapped_function_answers_with_absence_and_with_its_error() {
    let app = App { squares: Cache::builder("square").build().wrap(square) };
    assert_eq!(app.squares.call(&1).await.unwrap(), None);
    let error = app.squares.call(&0).await.unwrap_err();
    assert!(matches!(error, LoadError::Source(error) if *error == Failed));
}

#[tokio::test]
async fn callers_of_a_wrapped_function_share_one_call() {
    let (calls, gate) = (Arc::new(AtomicUsize::new(0)), Gate::new());
    let (counted, behind) = (Arc::clone(&calls), gate.clone());
    let slow = Cache::<u64, u64>::builder("slow").build().wrap(move |number| {
        let (counted, behind) = (Arc::clone(&counted), behind.clone());
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            behind.pass().await;
            Ok::<_, Failed>(Loaded::value(number))
        }
    });
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let slow = slow.clone();
        callers.spawn(async move { slow.call(&7).await.unwrap() });
    }
    gate.arrival().await;
    gate.open();
    assert!(callers.join_all().await.iter().all(|value| value.as_deref() == Some(&7)));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_wrapped_function_is_not_called_for_what_the_remote_has() {
    let (server, calls) = (greenwave_test_servers::Server::redis(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 {
        let counted = Arc::clone(&calls);
        let remote = crate::remote::patient(&server.url());
        let squares = Cache::builder("square").remote(remote).build().wrap(move |number| {
            counted.fetch_add(1, Ordering::SeqCst);
            square(number)
        });
        assert_eq!(squares.call(&7).await.unwrap().as_deref(), Some(&49));
        squares.cache().settled().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
