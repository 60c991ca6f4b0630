//! What a seal is worth in one task; in many, the model says.

use std::time::Duration;

use tokio::time::{Instant, advance};

use super::coherence::{Coherence, Standing};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_change_breaks_the_seals_from_before_and_no_other() {
    let coherence = Coherence::new(SECOND);
    coherence.hear();
    let (before, other) = (coherence.seal(b"a"), coherence.seal(b"b"));
    coherence.changed(b"a");
    assert_eq!(coherence.standing(before), Standing::Changed);
    assert_eq!(coherence.standing(other), Standing::Current);
    assert_eq!(coherence.standing(coherence.seal(b"a")), Standing::Current);
    coherence.changed_all();
    assert_eq!(coherence.standing(other), Standing::Changed);
}

#[tokio::test(start_paused = true)]
async fn who_changes_a_key_keeps_its_seal_unless_another_changed_it_too() {
    let coherence = Coherence::new(SECOND);
    coherence.hear();
    let (writer, reader) = (coherence.seal(b"a"), coherence.seal(b"a"));
    let written = coherence.changed_here(writer);
    assert_eq!(coherence.standing(written), Standing::Current);
    assert_eq!(coherence.standing(reader), Standing::Changed);

    let writer = coherence.seal(b"a");
    coherence.changed(b"a");
    assert_eq!(coherence.standing(coherence.changed_here(writer)), Standing::Changed);
}

#[tokio::test(start_paused = true)]
async fn what_goes_unheard_is_trusted_for_a_short_time() {
    let coherence = Coherence::new(SECOND);
    coherence.hear();
    let seal = coherence.seal(b"a");
    assert_eq!(coherence.bound(seal, SECOND * 9), SECOND * 9);
    coherence.lose(Instant::now());
    assert_eq!(coherence.standing(seal), Standing::Current);
    advance(SECOND / 2).await;
    coherence.lose(Instant::now());
    advance(SECOND / 2).await;
    assert_eq!(coherence.standing(seal), Standing::Unheard, "lost is lost, however often it is said");

    let deaf = coherence.seal(b"a");
    assert_eq!(coherence.standing(deaf), Standing::Current);
    assert_eq!(coherence.bound(deaf, SECOND * 9), SECOND);
    coherence.hear();
    assert_eq!(coherence.standing(deaf), Standing::Unheard, "it may have been changed meanwhile");
    assert_eq!(coherence.standing(seal), Standing::Unheard);
    coherence.changed(b"a");
    assert_eq!(coherence.standing(seal), Standing::Changed);
}
