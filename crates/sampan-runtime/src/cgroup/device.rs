//! Which devices a container may open: the usual ones, whatever nodes it makes. On v1 these are rules in a file, on v2 a
//! small BPF program on the group.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// A rule that allows something. `None` is any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
    /// Only making the node, not opening it.
    mknod_only: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let access = if self.mknod_only { "m" } else { "rwm" };
        let kind = if self.block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

const fn open(major: u32, minor: Option<u32>) -> Rule {
    Rule { block: false, major: Some(major), minor, mknod_only: false }
}

/// null, zero, full, tty, random, urandom, console, ptmx and the terminals of devpts; nodes may be made of everything.
pub(super) const ALLOWED: [Rule; 11] = [
    Rule { block: false, major: None, minor: None, mknod_only: true },
    Rule { block: true, major: None, minor: None, mknod_only: true },
    open(1, Some(3)),
    open(1, Some(5)),
    open(1, Some(7)),
    open(1, Some(8)),
    open(1, Some(9)),
    open(5, Some(0)),
    open(5, Some(1)),
    open(5, Some(2)),
    open(136, None),
];

/// One BPF instruction: operation, registers (source in the high half, destination in the low), offset, value.
struct Instruction(u8, u8, i16, i32);

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

/// `struct bpf_cgroup_dev_ctx { access_type = (access << 16) | type, major, minor }`; 1 allows, 0 refuses.
/// r2 type, r3 access, r4 major, r5 minor.
fn program() -> Vec<Instruction> {
    const TYPE_BLOCK: i32 = 1;
    const TYPE_CHAR: i32 = 2;
    const ACCESS_MKNOD: i32 = 1;
    let mut program = vec![
        Instruction(LOAD_WORD, 0x12, 0, 0),
        Instruction(MOVE_REGISTER, 0x23, 0, 0),
        Instruction(AND, 2, 0, 0xffff),
        Instruction(SHIFT_RIGHT, 3, 0, 16),
        Instruction(LOAD_WORD, 0x14, 4, 0),
        Instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in ALLOWED {
        let mut tests = vec![(2, if rule.block { TYPE_BLOCK } else { TYPE_CHAR })];
        if rule.mknod_only {
            tests.push((3, ACCESS_MKNOD));
        }
        tests.extend(rule.major.map(|major| (4, major as i32)));
        tests.extend(rule.minor.map(|minor| (5, minor as i32)));
        let count = tests.len();
        for (index, (register, value)) in tests.into_iter().enumerate() {
            // Past the other tests and the two instructions that allow.
            program.push(Instruction(JUMP_UNLESS_EQUAL, register, (count - index - 1 + 2) as i16, value));
        }
        program.extend([Instruction(MOVE, 0, 0, 1), Instruction(EXIT, 0, 0, 0)]);
    }
    program.extend([Instruction(MOVE, 0, 0, 0), Instruction(EXIT, 0, 0, 0)]);
    program
}

/// Puts the program on a v2 group; it lives as long as the group.
pub(super) fn restrict(directory: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    /// The head of `union bpf_attr` for loading; the kernel takes the rest as zero.
    #[repr(C)]
    struct Load {
        kind: u32,
        length: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let instructions: Vec<u8> = program()
        .iter()
        .flat_map(|Instruction(operation, registers, offset, value)| {
            let mut bytes = [*operation, *registers, 0, 0, 0, 0, 0, 0];
            bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
            bytes[4..].copy_from_slice(&value.to_ne_bytes());
            bytes
        })
        .collect();
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        length: (instructions.len() / 8) as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the structs are as long as said and what they point to lives over the call; a new descriptor is returned.
    unsafe {
        let program = match libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) {
            fd @ 0.. => OwnedFd::from_raw_fd(fd as i32),
            _ => return Err(io::Error::last_os_error()),
        };
        let attach = Attach {
            target: directory.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
        };
        match libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
