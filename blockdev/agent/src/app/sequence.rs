//! The order of steps of an app-consistent point, and what follows when one fails: a pure machine.
//!
//! ```text
//! pre script -> freeze -> marker -> thaw -> post script
//! ```
//!
//! | what fails | what follows |
//! |---|---|
//! | pre script | nothing is frozen; the point is made crash-consistent, or not at all; post script |
//! | freeze | thaw (a part may be frozen); then the same |
//! | marker | thaw, post script; there is no point |
//! | thaw, or what was frozen had thawed by itself before it was asked | the point is there, and nobody knows whether it was made while all was frozen: crash-consistent, or failed |
//! | post script | it is told; the point is what it is |
//!
//! Whatever happens, a freeze that was begun is followed by exactly one thaw, and what a pre script did can be undone by the post
//! script.

/// What becomes of a point of which a step has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Otherwise {
    /// It is crash-consistent, and says so.
    #[default]
    Crash,
    /// There is none.
    Fail,
}

/// Which steps there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// A script before.
    pub pre: bool,
    /// Something to freeze.
    pub freeze: bool,
    /// A script behind.
    pub post: bool,
    /// What follows when a step fails.
    pub otherwise: Otherwise,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Run the script before.
    Pre,
    /// Freeze.
    Freeze,
    /// Make the point.
    Marker,
    /// Thaw.
    Thaw,
    /// Run the script behind.
    Post,
    /// Nothing more.
    End,
}

impl Step {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Step::Pre => "pre",
            Step::Freeze => "freeze",
            Step::Marker => "marker",
            Step::Thaw => "thaw",
            Step::Post => "post",
            Step::End => "end",
        }
    }
}

/// What the point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Made while everything was quiet.
    App,
    /// Like after a power cut.
    Crash,
    /// None.
    Failed,
}

impl Verdict {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::App => "app",
            Verdict::Crash => "crash",
            Verdict::Failed => "failed",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    shape: Shape,
    at: Step,
    froze: bool,
    marked: bool,
    /// The first step that failed.
    broken: Option<Step>,
}

impl Sequence {
    /// Begins.
    #[must_use]
    pub const fn new(shape: Shape) -> Sequence {
        let at = if shape.pre {
            Step::Pre
        } else if shape.freeze {
            Step::Freeze
        } else {
            Step::Marker
        };
        Sequence { shape, at, froze: false, marked: false, broken: None }
    }

    /// What is to be done now.
    #[must_use]
    pub const fn step(&self) -> Step {
        self.at
    }

    const fn behind(&self) -> Step {
        if self.shape.post { Step::Post } else { Step::End }
    }

    /// After something failed before the marker.
    const fn without(&self) -> Step {
        match self.shape.otherwise {
            Otherwise::Crash => Step::Marker,
            Otherwise::Fail => self.behind(),
        }
    }

    /// Hears how the step went.
    pub fn done(&mut self, well: bool) {
        let step = self.at;
        if !well && step != Step::Post {
            self.broken = self.broken.or(Some(step));
        }
        self.at = match (step, well) {
            (Step::Pre, true) if self.shape.freeze => Step::Freeze,
            (Step::Pre, true) | (Step::Freeze, true) => Step::Marker,
            (Step::Pre, false) => self.without(),
            (Step::Freeze, false) => Step::Thaw,
            (Step::Marker, _) if self.froze => Step::Thaw,
            (Step::Marker, _) => self.behind(),
            (Step::Thaw, _) if self.broken == Some(Step::Freeze) => self.without(),
            (Step::Thaw, _) => self.behind(),
            (Step::Post | Step::End, _) => Step::End,
        };
        match step {
            Step::Freeze => self.froze = well,
            Step::Marker => self.marked = well,
            Step::Thaw => self.froze = false,
            _ => {}
        }
    }

    /// The first step that failed, the post script not counted.
    #[must_use]
    pub const fn broken(&self) -> Option<Step> {
        self.broken
    }

    /// What the point is, once all is over.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match (self.marked, self.broken, self.shape.otherwise) {
            (false, ..) | (true, Some(_), Otherwise::Fail) => Verdict::Failed,
            (true, Some(_), Otherwise::Crash) => Verdict::Crash,
            (true, None, _) => Verdict::App,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps and how they went.
    type Way = [(Step, bool)];

    /// Every way through, with the outcome of each step.
    fn each_way(sequence: Sequence, so_far: &mut Vec<(Step, bool)>, look: &mut impl FnMut(&Way, Sequence)) {
        if sequence.step() == Step::End {
            return look(so_far, sequence);
        }
        assert!(so_far.len() < 6, "it ends: {so_far:?}");
        for well in [true, false] {
            let mut next = sequence;
            so_far.push((sequence.step(), well));
            next.done(well);
            each_way(next, so_far, look);
            so_far.pop();
        }
    }

    fn all(look: &mut impl FnMut(Shape, &Way, Sequence)) {
        for bits in 0..16 {
            let otherwise = if bits & 8 == 0 { Otherwise::Crash } else { Otherwise::Fail };
            let shape = Shape { pre: bits & 1 != 0, freeze: bits & 2 != 0, post: bits & 4 != 0, otherwise };
            each_way(Sequence::new(shape), &mut Vec::new(), &mut |way, end| look(shape, way, end));
        }
    }

    #[test]
    fn what_is_frozen_is_thawed_and_nothing_happens_twice() {
        let mut ways = 0;
        all(&mut |shape, way, _| {
            let at = |step: Step| way.iter().position(|w| w.0 == step);
            let went = |step: Step| way.iter().find(|w| w.0 == step).is_some_and(|w| w.1);
            for step in [Step::Pre, Step::Freeze, Step::Marker, Step::Thaw, Step::Post] {
                assert!(way.iter().filter(|w| w.0 == step).count() <= 1, "{way:?}");
            }
            // Thaw exactly if there was a freeze, and behind it; the marker between them only if all of it worked.
            assert_eq!(at(Step::Freeze).is_some(), at(Step::Thaw).is_some(), "{way:?}");
            assert!(at(Step::Freeze) <= at(Step::Thaw), "{way:?}");
            if let (Some(freeze), Some(marker), Some(thaw)) = (at(Step::Freeze), at(Step::Marker), at(Step::Thaw)) {
                assert_eq!(freeze < marker && marker < thaw, went(Step::Freeze), "{way:?}");
            }
            assert_eq!(way.last().is_some_and(|w| w.0 == Step::Post), shape.post, "post is the last, always: {way:?}");
            assert_eq!(way[0].0 == Step::Pre, shape.pre);
            ways += 1;
        });
        assert!(ways > 100, "{ways}");
    }

    #[test]
    fn a_point_is_called_what_it_is() {
        all(&mut |shape, way, end| {
            let failed = way.iter().find(|w| !w.1 && w.0 != Step::Post).map(|w| w.0);
            let marked = way.contains(&(Step::Marker, true));
            let steps = [
                (Step::Pre, shape.pre),
                (Step::Freeze, shape.freeze),
                (Step::Marker, true),
                (Step::Thaw, shape.freeze),
            ];
            let whole = steps.iter().all(|(step, there)| !there || way.contains(&(*step, true)));
            assert_eq!(end.verdict() == Verdict::App, whole, "{way:?}");
            assert_eq!(end.broken(), failed);
            match (marked, failed, shape.otherwise) {
                (false, ..) => assert_eq!(end.verdict(), Verdict::Failed, "{way:?}"),
                (true, Some(_), Otherwise::Fail) => {
                    assert_eq!(end.verdict(), Verdict::Failed, "{way:?}");
                    assert_eq!(failed, Some(Step::Thaw), "no marker is made for a point that has failed: {way:?}");
                }
                (true, Some(_), Otherwise::Crash) => assert_eq!(end.verdict(), Verdict::Crash, "{way:?}"),
                (true, None, _) => assert_eq!(end.verdict(), Verdict::App, "{way:?}"),
            }
        });
    }
}
