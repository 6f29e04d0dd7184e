//! What becomes of a job next, from what its owner wants and what earlier controllers left (pure).

use crate::rendezvous::group::Outcome;

/// What the job's owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It runs.
    Run,
    /// Nothing of it runs, and it can go on later (`spec.suspend`).
    Hold,
    /// It ends.
    Cancel {
        /// Without grace.
        now: bool,
    },
}

/// What is there of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found<'a> {
    /// How it ended the last time.
    pub outcome: Option<&'a Outcome>,
    /// Its owner asks to go on after that end, and it has not been done.
    pub is_to_resume: bool,
    /// The child, and so maybe pods, exist.
    pub has_child: bool,
    /// A generation has been gathered: its ranks may run.
    pub has_run: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is over, and what is left of it stays for whoever reads its logs.
    Rest,
    /// Write down that it was cancelled; nothing of it ever ran.
    EndUnstarted,
    /// Nothing of it exists, and that is right.
    Keep,
    /// Delete the child and wait until nothing of it runs; then look again.
    Clear,
    /// Ask for places.
    Ask,
    /// Go on with the child that is there.
    Adopt,
}

/// What to do with a job that nobody looks after at this moment.
#[must_use]
pub fn next(wish: Wish, found: Found<'_>) -> Next {
    let Found { outcome, is_to_resume, has_child, has_run } = found;
    match (outcome, wish) {
        (Some(Outcome::Succeeded), _) => Next::Rest,
        (Some(Outcome::Failed { .. }), _) if !is_to_resume => Next::Rest,
        (Some(Outcome::Cancelled), Wish::Cancel { .. }) => Next::Rest,
        // Its ranks are stopped in order first, and may save what they have.
        (None, _) if has_child && has_run => Next::Adopt,
        (None, Wish::Cancel { .. }) if !has_child => Next::EndUnstarted,
        (_, Wish::Hold | Wish::Cancel { .. }) if has_child => Next::Clear,
        (_, Wish::Hold) => Next::Keep,
        (Some(_), Wish::Run) if has_child => Next::Clear,
        (None, Wish::Run) if has_child => Next::Adopt,
        (_, Wish::Run) => Next::Ask,
        (Some(Outcome::Failed { .. }), Wish::Cancel { .. }) => Next::Rest,
        (None, Wish::Cancel { .. }) => Next::Clear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::CauseCode;
    use crate::rendezvous::group::Cause;
    use worker::units::Generation;

    #[test]
    fn every_state_has_one_way_on() {
        let failed = Outcome::Failed {
            cause: Box::new(Cause::plain(CauseCode::Internal, Generation(1), String::new())),
        };
        let (run, hold, cancel) = (Wish::Run, Wish::Hold, Wish::Cancel { now: false });
        let found =
            |outcome, is_to_resume, has_child, has_run| Found { outcome, is_to_resume, has_child, has_run };
        let new = |has_child, has_run| found(None, false, has_child, has_run);
        let table = [
            // A new job.
            (run, new(false, false), Next::Ask),
            (hold, new(false, false), Next::Keep),
            (cancel, new(false, false), Next::EndUnstarted),
            // A controller died between making the child and starting the gang.
            (run, new(true, false), Next::Adopt),
            (hold, new(true, false), Next::Clear),
            (cancel, new(true, false), Next::Clear),
            // One died while the gang ran: whatever is wanted, the gang is looked after first.
            (run, new(true, true), Next::Adopt),
            (hold, new(true, true), Next::Adopt),
            (cancel, new(true, true), Next::Adopt),
            // The child was deleted by somebody: the gang starts again at its commit.
            (run, new(false, true), Next::Ask),
            (hold, new(false, true), Next::Keep),
            // Ends.
            (run, found(Some(&Outcome::Succeeded), true, true, true), Next::Rest),
            (hold, found(Some(&Outcome::Succeeded), false, false, true), Next::Rest),
            (run, found(Some(&failed), false, true, true), Next::Rest),
            (run, found(Some(&failed), true, true, true), Next::Clear),
            (run, found(Some(&failed), true, false, true), Next::Ask),
            (cancel, found(Some(&Outcome::Cancelled), false, true, true), Next::Rest),
            // Suspended, and not any more.
            (hold, found(Some(&Outcome::Cancelled), false, true, true), Next::Clear),
            (hold, found(Some(&Outcome::Cancelled), false, false, true), Next::Keep),
            (run, found(Some(&Outcome::Cancelled), false, true, true), Next::Clear),
            (run, found(Some(&Outcome::Cancelled), false, false, true), Next::Ask),
        ];
        for (wish, found, expected) in table {
            assert_eq!(next(wish, found), expected, "{wish:?} {found:?}");
        }
    }
}
