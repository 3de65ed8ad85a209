//! One half of the walk in [`crate::kills`].

#[test]
fn the_runner_is_killed_before_every_effect_and_nothing_is_lost_or_doubled() {
    crate::kills::walk("before");
}
