//! A value that is replaced as a whole while others use it: whoever has it keeps the old one for as long as it needs it.

use std::sync::{Arc, PoisonError, RwLock};

/// The present value of something that may be replaced.
#[derive(Debug)]
pub struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    /// Begins with this value.
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Self(RwLock::new(value.into()))
    }

    /// The value as it is now.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is this one.
    pub fn set(&self, value: impl Into<Arc<T>>) {
        let value = value.into();
        // What goes is dropped outside of the lock: it may have connections to end.
        let gone = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), value);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_old_value_keeps_it_and_who_asks_gets_the_new_one() {
        let live = Live::new(1);
        let old = live.get();
        live.set(2);
        assert_eq!((*old, *live.get()), (1, 2));
    }
}
