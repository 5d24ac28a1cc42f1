//! From verdicts to a program.
//!
//! ```text
//! arch?  ──► X86_64 ──► number >= 0x40000000 (x32): ENOSYS
//!   │                   binary search on the number ──► constant action
//!   │                                               └─► comparisons of arguments ──► action
//!   ├──────► X86    ──► binary search …
//!   └──────► kill
//! ```
//!
//! Neighbouring numbers with one action are one leaf, so the search is over about a hundred runs and takes seven steps.
//! Only loads of the number and the instruction set lie before a constant action: that lets the kernel (5.11 and
//! later) see that a call is always allowed, and not run the program for it at all.

use super::tables::Arch;
use super::{Action, Comparison, Condition, Verdict};
use crate::{Error, ErrorKind, Result};

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    /// How many instructions to skip if the comparison holds.
    pub(super) jt: u8,
    /// How many to skip if it does not.
    pub(super) jf: u8,
    pub(super) k: u32,
}

// BPF_LD|BPF_W|BPF_ABS and so on, see linux/bpf_common.h.
pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_GREATER: u16 = 0x25;
pub(super) const IF_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const AND: u16 = 0x54;
pub(super) const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`, see seccomp(2).
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCH: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

/// The kernel takes no longer program.
const MAX_INSTRUCTIONS: usize = 4096;

/// The first number of the x32 interface on x86_64; below it are the ordinary calls.
const X32: u32 = 0x4000_0000;

const ENOSYS: Action = Action::Errno(libc::ENOSYS as u16);

/// One instruction set's part.
pub(super) struct Block<'a> {
    pub(super) arch: Arch,
    /// By number, ascending, each number once.
    pub(super) verdicts: Vec<(u32, Verdict<'a>)>,
    /// The highest number that the policy has an opinion on.
    pub(super) newest: Option<u32>,
}

/// A run of numbers with one verdict, from `start` to the start of the next.
struct Run<'a> {
    start: u32,
    leaf: Leaf<'a>,
}

#[derive(Clone, Copy)]
enum Leaf<'a> {
    Constant(Action),
    Depends(&'a Verdict<'a>),
}

/// Runs in order, neighbours with one constant action joined.
struct Runs<'a>(Vec<Run<'a>>);

impl<'a> Runs<'a> {
    fn push(&mut self, start: u32, leaf: Leaf<'a>) {
        match (self.0.last().map(|run| run.leaf), leaf) {
            (Some(Leaf::Constant(last)), Leaf::Constant(action)) if last == action => {}
            _ => self.0.push(Run { start, leaf }),
        }
    }
}

pub(super) fn assemble(default: Action, blocks: &[Block<'_>]) -> Result<Vec<u8>> {
    let mut program = Program::default();
    let mut otherwise = program.give(Action::KillProcess);
    for block in blocks.iter().rev() {
        let runs = block.runs(default);
        let first = program.search(&runs, default);
        // The load runs into what comes next, and a shared return may be elsewhere.
        if program.distance(first) > 0 {
            let far = program.distance(first);
            program.push(jump(far));
        }
        let entry = program.push(load(NUMBER));
        otherwise = program.branch(IF_EQUAL, block.arch.audit(), entry, otherwise);
    }
    program.push(load(ARCH));
    let length = program.reversed.len();
    if length > MAX_INSTRUCTIONS {
        return Err(Error::new(ErrorKind::Limit, "compile a seccomp policy")
            .because(format!("the program has {length} instructions, and the kernel takes {MAX_INSTRUCTIONS}")));
    }
    let mut bytes = Vec::with_capacity(length * 8);
    for instruction in program.reversed.iter().rev() {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    Ok(bytes)
}

/// A program that is written from its end to its beginning: jumps only go forward, so whatever one jumps to is there
/// already, and many can share one return. A shorter program is a faster launch, since the kernel compiles it anew for
/// each container.
#[derive(Default)]
struct Program {
    reversed: Vec<Instruction>,
    /// Where each action was returned last.
    returns: Vec<(Action, Place)>,
}

/// An instruction, counted from the end.
#[derive(Clone, Copy)]
struct Place(usize);

impl Program {
    fn push(&mut self, instruction: Instruction) -> Place {
        self.reversed.push(instruction);
        Place(self.reversed.len() - 1)
    }

    /// How many instructions one that is written now would skip to get there.
    fn distance(&self, to: Place) -> usize {
        self.reversed.len() - to.0 - 1
    }

    /// A return of this action within easy reach.
    fn give(&mut self, action: Action) -> Place {
        let known = self.returns.iter().position(|(one, _)| *one == action);
        match known.map(|index| self.returns[index].1) {
            Some(place) if self.distance(place) < 200 => place,
            _ => {
                let place = self.push(give(action));
                self.returns.retain(|(one, _)| *one != action);
                self.returns.push((action, place));
                place
            }
        }
    }

    /// The same place, or a jump to it that a conditional jump (255 instructions at most) can reach.
    fn within_reach(&mut self, to: Place) -> Place {
        match self.distance(to) {
            // One less: the other target may still need a jump of its own in between.
            0..=254 => to,
            far => self.push(jump(far)),
        }
    }

    fn branch(&mut self, code: u16, k: u32, then: Place, otherwise: Place) -> Place {
        let then = self.within_reach(then);
        let otherwise = self.within_reach(otherwise);
        let skip = |to| u8::try_from(self.distance(to)).unwrap_or(u8::MAX);
        let (jt, jf) = (skip(then), skip(otherwise));
        self.push(Instruction { code, jt, jf, k })
    }

    /// A binary search for the run that the number in the accumulator is in.
    fn search(&mut self, runs: &[Run<'_>], default: Action) -> Place {
        match runs {
            [] => self.give(default),
            [Run { leaf: Leaf::Constant(action), .. }] => self.give(*action),
            [Run { leaf: Leaf::Depends(verdict), .. }] => {
                let mut code = Vec::new();
                arguments(verdict, default, &mut code);
                self.reversed.extend(code.into_iter().rev());
                Place(self.reversed.len() - 1)
            }
            _ => {
                let (left, right) = runs.split_at(runs.len() / 2);
                let above = self.search(right, default);
                let below = self.search(left, default);
                self.branch(IF_GREATER_OR_EQUAL, right[0].start, above, below)
            }
        }
    }
}

impl Block<'_> {
    /// All numbers, as runs.
    fn runs(&self, default: Action) -> Vec<Run<'_>> {
        let mut runs = Runs(Vec::new());
        let mut next = 0;
        for (number, verdict) in &self.verdicts {
            if *number > next {
                runs.push(next, Leaf::Constant(default));
            }
            let leaf = verdict.constant(default).map_or(Leaf::Depends(verdict), Leaf::Constant);
            runs.push(*number, leaf);
            next = number + 1;
        }
        // Calls that came after the policy was written.
        let newer = match (default, self.newest) {
            (Action::Errno(_), Some(_)) => ENOSYS,
            _ => default,
        };
        let end = self.newest.map_or(0, |newest| newest.saturating_add(1)).max(next);
        if end > next {
            runs.push(next, Leaf::Constant(default));
        }
        runs.push(end, Leaf::Constant(newer));
        if self.arch == Arch::X86_64 {
            // Never less than what other calls get.
            let x32 = if default.rank() < ENOSYS.rank() { default } else { ENOSYS };
            runs.push(X32, Leaf::Constant(x32));
        }
        runs.0
    }
}

/// The cases of a call whose arguments matter, in turn.
fn arguments(verdict: &Verdict<'_>, default: Action, code: &mut Vec<Instruction>) {
    let mut rest = verdict.cases.as_slice();
    while let Some(((conditions, action), after)) = rest.split_first() {
        if let Some((argument, values)) = alternatives(rest) {
            one_of(argument, &values, *action, code);
            rest = &rest[values.len()..];
            continue;
        }
        case(conditions, *action, code);
        if conditions.is_empty() {
            return;
        }
        rest = after;
    }
    code.push(give(default));
}

/// The longest run of cases at the front (two or more) that allow one value of one argument each.
fn alternatives(cases: &[(&[Condition], Action)]) -> Option<(u8, Vec<u32>)> {
    let single = |(conditions, action): &(&[Condition], Action)| match conditions {
        [Condition { argument, comparison: Comparison::Equal, value }] if action.permits() => {
            Some((*argument, u32::try_from(*value).ok()?, *action))
        }
        _ => None,
    };
    let (argument, _, action) = single(cases.first()?)?;
    let same = cases.iter().map_while(|case| single(case).filter(|(a, _, b)| (*a, *b) == (argument, action)));
    // Each is one jump over the ones after it: 8 bits of distance.
    let values: Vec<u32> = same.take(250).map(|(_, value, _)| value).collect();
    (values.len() > 1).then_some((argument, values))
}

/// `if the argument is one of the values: action`, one instruction for each.
fn one_of(argument: u8, values: &[u32], action: Action, code: &mut Vec<Instruction>) {
    let skip = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    code.push(load(high(argument)));
    code.push(Instruction { code: IF_EQUAL, jt: 0, jf: skip(values.len() + 2), k: 0 });
    code.push(load(low(argument)));
    for (index, value) in values.iter().enumerate() {
        let left = values.len() - 1 - index;
        // The last one falls through to the action, or jumps over it.
        code.push(Instruction { code: IF_EQUAL, jt: skip(left), jf: u8::from(left == 0), k: *value });
    }
    code.push(give(action));
}

/// `if all conditions hold: action`.
fn case(conditions: &[Condition], action: Action, code: &mut Vec<Instruction>) {
    let mut body = Vec::new();
    for condition in conditions {
        condition.assemble(!action.permits(), &mut body);
    }
    // What fails goes to the end of the case, behind the action.
    let end = body.len() + 1;
    for (index, step) in body.into_iter().enumerate() {
        // At most six conditions of six steps: every distance fits.
        let distance = |to: To| match to {
            To::Next => 0,
            To::Skip(count) => count,
            To::Fail => u8::try_from(end - index - 1).unwrap_or(u8::MAX),
        };
        code.push(match step {
            Step::Do(instruction) => instruction,
            Step::If(code, k, then, otherwise) => Instruction { code, jt: distance(then), jf: distance(otherwise), k },
        });
    }
    code.push(give(action));
}

/// Part of a condition, with jumps that are not resolved yet.
enum Step {
    Do(Instruction),
    If(u16, u32, To, To),
}

#[derive(Clone, Copy)]
enum To {
    Next,
    /// Over so many steps: the condition holds.
    Skip(u8),
    Fail,
}

impl Condition {
    fn assemble(&self, refuses: bool, body: &mut Vec<Step>) {
        use Step::{Do, If};
        use To::{Fail, Next, Skip};
        let (value_high, value_low) = ((self.value >> 32) as u32, self.value as u32);
        let load_high = Do(load(high(self.argument)));
        let load_low = Do(load(low(self.argument)));
        // A refusal of a 32-bit value must not be stepped around with a bit that the kernel ignores. `NotEqual`,
        // `Greater` and `GreaterOrEqual` hold for such arguments anyway.
        let lower_half = refuses && value_high == 0;
        match self.comparison {
            Comparison::Equal if lower_half => {
                body.extend([load_low, If(IF_EQUAL, value_low, Next, Fail)]);
            }
            Comparison::Less if lower_half => {
                body.extend([load_low, If(IF_GREATER_OR_EQUAL, value_low, Fail, Next)]);
            }
            Comparison::LessOrEqual if lower_half => {
                body.extend([load_low, If(IF_GREATER, value_low, Fail, Next)]);
            }
            Comparison::Equal => body.extend([
                load_high,
                If(IF_EQUAL, value_high, Next, Fail),
                load_low,
                If(IF_EQUAL, value_low, Next, Fail),
            ]),
            Comparison::NotEqual => body.extend([
                load_high,
                If(IF_EQUAL, value_high, Next, Skip(2)),
                load_low,
                If(IF_EQUAL, value_low, Fail, Next),
            ]),
            Comparison::Greater | Comparison::GreaterOrEqual => {
                let last = match self.comparison {
                    Comparison::Greater => IF_GREATER,
                    _ => IF_GREATER_OR_EQUAL,
                };
                body.extend([
                    load_high,
                    If(IF_GREATER, value_high, Skip(3), Next),
                    If(IF_EQUAL, value_high, Next, Fail),
                    load_low,
                    If(last, value_low, Next, Fail),
                ]);
            }
            Comparison::Less | Comparison::LessOrEqual => {
                let last = match self.comparison {
                    Comparison::Less => IF_GREATER_OR_EQUAL,
                    _ => IF_GREATER,
                };
                body.extend([
                    load_high,
                    If(IF_GREATER, value_high, Fail, Next),
                    If(IF_EQUAL, value_high, Next, Skip(2)),
                    load_low,
                    If(last, value_low, Fail, Next),
                ]);
            }
            Comparison::MaskedEqual(mask) => {
                let (mask_high, mask_low) = ((mask >> 32) as u32, mask as u32);
                for (load, mask, value) in [(load_high, mask_high, value_high), (load_low, mask_low, value_low)] {
                    // A half that the mask leaves out is zero, whatever the argument.
                    if mask != 0 || value != 0 {
                        let and = Do(Instruction { code: AND, jt: 0, jf: 0, k: mask });
                        body.extend([load, and, If(IF_EQUAL, value, Next, Fail)]);
                    }
                }
            }
        }
    }
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn give(action: Action) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: action.value() }
}

/// Over so many instructions; a program has far fewer than 2³².
const fn jump(count: usize) -> Instruction {
    Instruction { code: JUMP, jt: 0, jf: 0, k: count as u32 }
}

/// Where the lower half of an argument is.
const fn low(argument: u8) -> u32 {
    ARGUMENTS + 8 * argument as u32 + if cfg!(target_endian = "big") { 4 } else { 0 }
}

/// Where its upper half is.
const fn high(argument: u8) -> u32 {
    ARGUMENTS + 8 * argument as u32 + if cfg!(target_endian = "big") { 0 } else { 4 }
}
