//! The same for many, several at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_engine::step::StepError;

/// Does something to each item with so many threads; the first error ends all of them.
pub(crate) fn each<T: Sync>(
    items: &[T],
    at_once: usize,
    one: impl Fn(&T) -> Result<(), StepError> + Sync,
) -> Result<(), StepError> {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = one(item) {
                next.store(items.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once.min(items.len())).map(|_| scope.spawn(run)).collect();
        let ended = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All are waited for before the first error is returned.
        ended.fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::codes;

    #[test]
    fn each_item_is_taken_once_and_an_error_ends_the_rest() {
        let seen = Mutex::new(Vec::new());
        let items: Vec<u32> = (0..1000).collect();
        each(&items, 7, |item| {
            seen.lock().unwrap().push(*item);
            Ok(())
        })
        .expect("nothing fails");
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, items);
        let begun = AtomicUsize::new(0);
        let failed = each(&items, 4, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item == 3 { Err(StepError::permanent(codes::LB1103, "broken")) } else { Ok(()) }
        });
        assert_eq!(failed.expect_err("one fails").code, codes::LB1103);
        assert!(begun.into_inner() < 1000);
        each(&[], 4, |_: &u32| Ok(())).expect("nothing to do");
    }
}
