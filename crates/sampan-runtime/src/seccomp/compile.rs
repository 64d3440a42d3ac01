//! Profile to classic BPF: a binary search over ranges of call numbers that share their rules, so that a call costs about
//! eight comparisons, then the conditions on its arguments. (The kernel remembers calls that are allowed whatever their
//! arguments and does not run the program for them.)

use std::collections::BTreeMap;

use super::{Action, Condition, Profile, Rule, Test, table};

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// `struct seccomp_data`: number, architecture, instruction pointer, arguments.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Numbers from here on are of x32, another ABI on the same architecture.
const X32: u32 = 0x4000_0000;

/// A condition that does not hold jumps here; resolved when the rule's length is known.
const FAIL: u8 = u8::MAX;

/// The program's bytes. The error says what is wrong with the profile.
pub(super) fn compile(profile: &Profile) -> Result<Vec<u8>, String> {
    let program = program(profile)?;
    let bytes = program.iter().flat_map(|instruction| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&instruction.code.to_ne_bytes());
        bytes[2..4].copy_from_slice(&[instruction.if_true, instruction.if_false]);
        bytes[4..].copy_from_slice(&instruction.value.to_ne_bytes());
        bytes
    });
    Ok(bytes.collect())
}

fn program(profile: &Profile) -> Result<Vec<Instruction>, String> {
    const INSTRUCTIONS_MAX: usize = 4096;
    let ranges = ranges(profile);
    let other = action(profile.default);
    let mut program = vec![load(OFFSET_ARCHITECTURE), jump(JUMP_EQUAL, ARCHITECTURE, 1, 0), other];
    program.extend([load(OFFSET_NUMBER), jump(JUMP_GREATER_OR_EQUAL, X32, 0, 1), other]);
    program.extend(search(&ranges, profile.default)?);
    match program.len() <= INSTRUCTIONS_MAX {
        true => Ok(program),
        false => Err(format!("the filter has {} instructions, more than the kernel takes", program.len())),
    }
}

/// The first number of each range and the rules of its calls; the ranges cover every number.
fn ranges(profile: &Profile) -> Vec<(u32, Vec<&Rule>)> {
    let mut calls: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &profile.rules {
        for &call in &rule.calls {
            let rules = calls.entry(call).or_default();
            // Nothing after a rule without conditions can count.
            if rules.last().is_none_or(|last| !last.conditions.is_empty()) {
                rules.push(rule);
            }
        }
    }
    // Every call that has rules, and after each the numbers up to the next.
    let mut starts: Vec<(u32, Vec<&Rule>)> = vec![(0, Vec::new())];
    for (call, rules) in calls {
        starts.retain(|(start, _)| *start != call);
        starts.extend([(call, rules), (call + 1, Vec::new())]);
    }
    starts.push((table::highest() + 1, vec![&profile.newer]));
    let unconditional = |rules: &[&Rule]| match rules {
        [] => Some(profile.default),
        [first, ..] => first.conditions.is_empty().then_some(first.action),
    };
    starts.dedup_by(|next, last| unconditional(&next.1).is_some() && unconditional(&next.1) == unconditional(&last.1));
    starts
}

fn search(ranges: &[(u32, Vec<&Rule>)], default: Action) -> Result<Vec<Instruction>, String> {
    if let [(_, rules)] = ranges {
        return body(rules, default);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let pivot = right.first().map_or(0, |(start, _)| *start);
    let (left, right) = (search(left, default)?, search(right, default)?);
    let over_left = Instruction { code: JUMP, if_true: 0, if_false: 0, value: left.len() as u32 };
    let mut program = vec![jump(JUMP_GREATER_OR_EQUAL, pivot, 0, 1), over_left];
    program.extend(left);
    program.extend(right);
    Ok(program)
}

fn body(rules: &[&Rule], default: Action) -> Result<Vec<Instruction>, String> {
    let mut program = Vec::new();
    for rule in rules {
        let mut instructions: Vec<Instruction> = rule.conditions.iter().flat_map(condition).collect();
        instructions.push(action(rule.action));
        let length = instructions.len();
        if length > usize::from(FAIL) {
            return Err("a rule has too many conditions".to_owned());
        }
        for (index, instruction) in instructions.iter_mut().enumerate() {
            let past = (length - index - 1) as u8;
            for target in [&mut instruction.if_true, &mut instruction.if_false] {
                if *target == FAIL {
                    *target = past;
                }
            }
        }
        program.extend(instructions);
    }
    if rules.last().is_none_or(|rule| !rule.conditions.is_empty()) {
        program.push(action(default));
    }
    Ok(program)
}

/// Arguments have 64 bits, the machine has 32: the high half decides, and where it is equal the low half.
fn condition(condition: &Condition) -> Vec<Instruction> {
    let offset = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
    let (low_half, high_half) = (load(offset), load(offset + 4));
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let and = |mask: u32| Instruction { code: AND, if_true: 0, if_false: 0, value: mask };
    match condition.test {
        Test::Equal => {
            vec![high_half, jump(JUMP_EQUAL, high, 0, FAIL), low_half, jump(JUMP_EQUAL, low, 0, FAIL)]
        }
        Test::NotEqual => {
            vec![high_half, jump(JUMP_EQUAL, high, 0, 2), low_half, jump(JUMP_EQUAL, low, FAIL, 0)]
        }
        Test::Masked(mask) => vec![
            high_half,
            and((mask >> 32) as u32),
            jump(JUMP_EQUAL, high, 0, FAIL),
            low_half,
            and(mask as u32),
            jump(JUMP_EQUAL, low, 0, FAIL),
        ],
        Test::Greater | Test::GreaterOrEqual => {
            let code = if condition.test == Test::Greater { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
            vec![
                high_half,
                jump(JUMP_GREATER, high, 3, 0),
                jump(JUMP_EQUAL, high, 0, FAIL),
                low_half,
                jump(code, low, 0, FAIL),
            ]
        }
        Test::Less | Test::LessOrEqual => {
            let code = if condition.test == Test::Less { JUMP_GREATER_OR_EQUAL } else { JUMP_GREATER };
            vec![
                high_half,
                jump(JUMP_GREATER, high, FAIL, 0),
                jump(JUMP_EQUAL, high, 0, 2),
                low_half,
                jump(code, low, FAIL, 0),
            ]
        }
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, value: offset }
}

fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn action(action: Action) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, value: action.0 }
}

/// Runs the compiled program as the kernel would.
#[cfg(test)]
pub(super) fn simulate(profile: &Profile, call: u32, arguments: [u64; 6]) -> Action {
    let program = program(profile).expect("it compiles");
    let mut data = [0u8; 64];
    data[..4].copy_from_slice(&call.to_le_bytes());
    data[4..8].copy_from_slice(&ARCHITECTURE.to_le_bytes());
    for (index, argument) in arguments.iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&argument.to_le_bytes());
    }
    let (mut accumulator, mut at) = (0u32, 0);
    loop {
        let instruction = program[at];
        at += 1;
        let holds = match instruction.code {
            LOAD => {
                let from = instruction.value as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
                continue;
            }
            AND => {
                accumulator &= instruction.value;
                continue;
            }
            JUMP => {
                at += instruction.value as usize;
                continue;
            }
            RETURN => return Action(instruction.value),
            JUMP_EQUAL => accumulator == instruction.value,
            JUMP_GREATER => accumulator > instruction.value,
            _ => accumulator >= instruction.value,
        };
        at += usize::from(if holds { instruction.if_true } else { instruction.if_false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(condition: &Condition, arguments: &[u64; 6]) -> bool {
        let argument = arguments[usize::from(condition.argument)];
        match condition.test {
            Test::Equal => argument == condition.value,
            Test::NotEqual => argument != condition.value,
            Test::Less => argument < condition.value,
            Test::LessOrEqual => argument <= condition.value,
            Test::Greater => argument > condition.value,
            Test::GreaterOrEqual => argument >= condition.value,
            Test::Masked(mask) => argument & mask == condition.value,
        }
    }

    /// The meaning of a profile, without BPF.
    fn expected(profile: &Profile, call: u32, arguments: &[u64; 6]) -> Action {
        let mut rules = profile.rules.iter().filter(|rule| rule.calls.contains(&call));
        rules.find(|r| r.conditions.iter().all(|c| holds(c, arguments))).map_or(profile.default, |rule| rule.action)
    }

    /// Values whose halves are often equal, so that every branch is taken.
    fn value() -> impl Strategy<Value = u64> {
        (0u64..3, 0u64..3).prop_map(|(high, low)| high << 32 | low)
    }

    fn a_condition() -> impl Strategy<Value = Condition> {
        let test = prop_oneof![
            Just(Test::Equal),
            Just(Test::NotEqual),
            Just(Test::Less),
            Just(Test::LessOrEqual),
            Just(Test::Greater),
            Just(Test::GreaterOrEqual),
            value().prop_map(Test::Masked),
        ];
        (0u8..6, test, value()).prop_map(|(argument, test, value)| Condition { argument, test, value })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let calls = prop::collection::vec(0u32..40, 1..12);
        let action = prop_oneof![Just(Action::ALLOW), Just(Action::errno(1)), Just(Action::errno(2))];
        (calls, action, prop::collection::vec(a_condition(), 0..3)).prop_map(|(calls, action, conditions)| Rule {
            calls,
            action,
            conditions,
        })
    }

    proptest! {
        #[test]
        fn programs_mean_what_profiles_say(
            rules in prop::collection::vec(rule(), 0..12),
            call in 0u32..45,
            arguments in prop::array::uniform6(value()),
        ) {
            let profile = Profile::new(Action::errno(13), rules);
            prop_assert_eq!(simulate(&profile, call, arguments), expected(&profile, call, &arguments));
        }
    }
}
