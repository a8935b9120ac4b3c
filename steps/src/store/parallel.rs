//! The same for many, several at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lifeboat_engine::step::StepError;

/// Up to here a transfer is nothing but waiting for the server, …
const TINY: u64 = 256 << 10;
const TINY_AT_ONCE: usize = 48;
/// … up to here an object is held in memory as a whole, …
const MEDIUM: u64 = 8 << 20;
const MEDIUM_AT_ONCE: usize = 8;
// … and larger ones are moved one after the other, each in parts at once. All together stay below 200 MB.

/// Moves objects of all sizes at the same time, so many at once as memory allows; the first error ends all of them.
pub(crate) fn by_size<T: Sync>(
    items: &[T],
    size: impl Fn(&T) -> u64,
    one: impl Fn(&T) -> Result<(), StepError> + Sync,
) -> Result<(), StepError> {
    let (tiny, rest): (Vec<_>, Vec<_>) = items.iter().partition(|item| size(item) <= TINY);
    let (medium, large): (Vec<_>, Vec<_>) = rest.into_iter().partition(|item| size(item) <= MEDIUM);
    let failed = AtomicBool::new(false);
    let checked = |item: &&T| {
        if failed.load(Ordering::Relaxed) {
            // The error that ended the others is the one that is told.
            return Ok(());
        }
        one(item).inspect_err(|_| failed.store(true, Ordering::Relaxed))
    };
    std::thread::scope(|scope| {
        let tiny = scope.spawn(|| each(&tiny, TINY_AT_ONCE, checked));
        let medium = scope.spawn(|| each(&medium, MEDIUM_AT_ONCE, checked));
        let large = large.iter().try_for_each(checked);
        let ended = [tiny, medium]
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.into_iter().fold(large, Result::and)
    })
}

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

    #[test]
    fn objects_of_all_sizes_are_taken_and_an_error_in_one_class_ends_the_others() {
        let items: Vec<u64> = (0..200).map(|number| number * (100 << 10)).collect();
        let seen = Mutex::new(Vec::new());
        by_size(
            &items,
            |size| *size,
            |size| {
                seen.lock().unwrap().push(*size);
                Ok(())
            },
        )
        .expect("nothing fails");
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, items);
        let failed = by_size(
            &items,
            |size| *size,
            |size| match *size {
                0 => Err(StepError::permanent(codes::LB1103, "broken")),
                _ => Ok(()),
            },
        );
        assert_eq!(failed.expect_err("one fails").code, codes::LB1103);
    }
}
