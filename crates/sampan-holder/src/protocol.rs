//! What the agent and a holder say to each other: plain plans and the messages around them. The runtime crate compiles
//! this same file, so there is one definition.
//!
//! One message is one packet of a `SOCK_SEQPACKET` connection; descriptors travel beside it. A plan can be larger than a
//! packet and travels as a memory file. The first byte of each packet is the kind. A holder outlives the agent that
//! started it: an agent asks for the version first and speaks that, and it knows [`VERSION`] and the one before.
//!
//! Not here: what a Kubernetes field means. The agent has decided everything before it writes a plan.

pub const VERSION: u32 = 1;

/// What the agent asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Answered with [`Reply::Hello`] and a pidfd of the holder.
    Hello,
    /// Starts a container; descriptor: its [`ContainerPlan`]. Answered when the program runs.
    Start,
    /// Runs a command in a container; descriptors: its [`ExecPlan`], then the streams it names. Answered with
    /// [`Reply::Done`] (with a terminal: and its descriptor), later with [`Reply::Exited`] on the same connection.
    Exec,
    /// Kills the command this connection started.
    Kill,
    /// Signals the main process of a container.
    Signal {
        container: String,
        signal: i32,
    },
    /// Copies the output of a container to the descriptors given; answered with the descriptor of its input when asked.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    ReopenLog {
        container: String,
    },
    /// Answered with a new TCP socket of the sandbox's network namespace (IPv4, or IPv6).
    Socket {
        ipv6: bool,
    },
    /// Turns the connection into one that is told [`Reply::ContainerExited`].
    Watch,
    /// Kills everything and ends. Not answered.
    Shutdown,
}

/// What a holder answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Hello {
        version: u32,
        running: Vec<String>,
    },
    Done,
    Failed(Failure),
    /// 128 + signal when a signal ended it.
    Exited {
        code: i32,
    },
    ContainerExited {
        container: String,
    },
}

/// Why something did not work, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The kernel refused a step.
    System,
    /// The program could not be started: not found, not executable, no such user.
    Start,
    /// The container does not run.
    NotRunning,
}

/// How a sandbox is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxPlan {
    /// `CLONE_NEW…` bits of the namespaces it owns. The user namespace, when there is one, comes first.
    pub namespaces: u64,
    /// Empty: unchanged.
    pub hostname: String,
    /// A PID namespace for all containers.
    pub shared_pid_namespace: bool,
    /// Names with slashes, below `/proc/sys`.
    pub sysctls: Vec<(String, String)>,
    /// The sandbox's own directory.
    pub directory: String,
    /// Size of the shared `/dev/shm`; 0: the machine's own is used.
    pub shm_bytes: u64,
}

/// How a container is made and started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerPlan {
    pub id: String,
    /// Where the holder writes `started` and `exit`.
    pub directory: String,
    pub log_path: String,
    /// Directories (of several hierarchies on cgroup v1) the process joins.
    pub cgroups: Vec<String>,
    /// There is one directory and it is of cgroup v2.
    pub cgroup_v2: bool,
    /// A file with a line `oom_kill COUNT`.
    pub oom_file: String,
    pub pid_namespace: PidNamespace,
    /// The overlay: mounted at `root`, its options relative to `layers`.
    pub root: String,
    pub layers: String,
    pub overlay: String,
    pub mounts: Vec<MountPlan>,
    pub devices: Vec<Device>,
    /// Symbolic links: path in the container, target.
    pub links: Vec<(String, String)>,
    pub masked_paths: Vec<String>,
    pub read_only_paths: Vec<String>,
    pub read_only_root: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub terminal: bool,
    pub process: ProcessPlan,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PidNamespace {
    #[default]
    Own,
    Sandbox,
    Host,
}

/// One mount, done in the order of the plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MountPlan {
    /// A filesystem type, `bind`, or `shm` for the sandbox's shared memory.
    pub kind: String,
    /// The source of a bind mount.
    pub source: String,
    /// A path in the container; symbolic links are followed inside its root only; made when absent.
    pub target: String,
    /// Of the filesystem; an empty value is a flag.
    pub options: Vec<(String, String)>,
    /// `MOUNT_ATTR_…` bits.
    pub attributes: u64,
    /// The attributes hold for the mounts below too.
    pub recursive: bool,
    /// `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED`.
    pub propagation: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    pub path: String,
    /// `S_IFCHR` or `S_IFBLK` and permissions.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// How a program is started, in a container's start and in an exec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessPlan {
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// Made when absent.
    pub directory: String,
    /// `user[:group]` of numbers or of names in the container's `/etc/passwd` and `/etc/group`.
    pub user: String,
    /// Wins over the user's group.
    pub group: Option<u32>,
    pub supplementary_groups: Vec<u32>,
    /// Capability numbers as bits.
    pub capabilities: u64,
    pub no_new_privileges: bool,
    /// `struct sock_filter` items; empty: no filter.
    pub seccomp: Vec<u8>,
    /// Resource, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    pub oom_score_adj: i32,
}

/// How a command is run in a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecPlan {
    pub container: String,
    /// Which streams are given as descriptors, in this order; absent ones are `/dev/null`.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub terminal: bool,
    pub process: ProcessPlan,
}

/// A value with a binary form: integers little-endian, lengths as `u32`, fields in order without tags.
pub trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the value from the front; `None` when the bytes are not its form.
    fn take(input: &mut &[u8]) -> Option<Self>;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    fn decode(mut input: &[u8]) -> Option<Self> {
        let value = Self::take(&mut input)?;
        input.is_empty().then_some(value)
    }
}

macro_rules! wire_integer {
    ($($kind:ty),*) => {$(
        impl Wire for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                let (head, rest) = input.split_first_chunk()?;
                *input = rest;
                Some(Self::from_le_bytes(*head))
            }
        }
    )*};
}
wire_integer!(u8, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        match u8::take(input)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        let length = u32::take(input)? as usize;
        let (head, rest) = input.split_at_checked(length)?;
        *input = rest;
        String::from_utf8(head.to_vec()).ok()
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        let length = u32::take(input)?;
        // Grows with what is really there, whatever the length claims.
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(T::take(input)?);
        }
        Some(items)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        match bool::take(input)? {
            true => T::take(input).map(Some),
            false => Some(None),
        }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        Some((A::take(input)?, B::take(input)?))
    }
}

impl<A: Wire, B: Wire, C: Wire> Wire for (A, B, C) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
        self.2.put(out);
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        Some((A::take(input)?, B::take(input)?, C::take(input)?))
    }
}

macro_rules! wire_struct {
    ($kind:ident { $($field:ident),* }) => {
        impl Wire for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.put(out);)*
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: Wire::take(input)?),* })
            }
        }
    };
}

/// Unit, tuple-less enums: one byte says which, the fields follow.
macro_rules! wire_enum {
    ($kind:ident { $($tag:literal => $name:ident $({ $($field:ident),* })?),* }) => {
        impl Wire for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                match self {$(
                    Self::$name $({ $($field),* })? => {
                        out.push($tag);
                        $($($field.put(out);)*)?
                    }
                )*}
            }
            fn take(input: &mut &[u8]) -> Option<Self> {
                Some(match u8::take(input)? {
                    $($tag => Self::$name $({ $($field: Wire::take(input)?),* })?,)*
                    _ => return None,
                })
            }
        }
    };
}

wire_enum!(Request {
    1 => Hello,
    2 => Start,
    3 => Exec,
    4 => Kill,
    5 => Signal { container, signal },
    6 => Attach { container, stdin, stdout, stderr },
    7 => ReopenLog { container },
    8 => Socket { ipv6 },
    9 => Watch,
    10 => Shutdown
});

impl Wire for Reply {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, running } => {
                out.push(1);
                version.put(out);
                running.put(out);
            }
            Self::Done => out.push(2),
            Self::Failed(failure) => {
                out.push(3);
                failure.put(out);
            }
            Self::Exited { code } => {
                out.push(4);
                code.put(out);
            }
            Self::ContainerExited { container } => {
                out.push(5);
                container.put(out);
            }
        }
    }
    fn take(input: &mut &[u8]) -> Option<Self> {
        Some(match u8::take(input)? {
            1 => Self::Hello { version: Wire::take(input)?, running: Wire::take(input)? },
            2 => Self::Done,
            3 => Self::Failed(Wire::take(input)?),
            4 => Self::Exited { code: Wire::take(input)? },
            5 => Self::ContainerExited { container: Wire::take(input)? },
            _ => return None,
        })
    }
}

wire_enum!(FailureKind { 1 => System, 2 => Start, 3 => NotRunning });
wire_enum!(PidNamespace { 0 => Own, 1 => Sandbox, 2 => Host });
wire_struct!(Failure { kind, text });
wire_struct!(SandboxPlan { namespaces, hostname, shared_pid_namespace, sysctls, directory, shm_bytes });
wire_struct!(ContainerPlan {
    id,
    directory,
    log_path,
    cgroups,
    cgroup_v2,
    oom_file,
    pid_namespace,
    root,
    layers,
    overlay,
    mounts,
    devices,
    links,
    masked_paths,
    read_only_paths,
    read_only_root,
    stdin,
    stdin_once,
    terminal,
    process
});
wire_struct!(MountPlan { kind, source, target, options, attributes, recursive, propagation });
wire_struct!(Device { path, mode, major, minor, uid, gid });
wire_struct!(ProcessPlan {
    args,
    env,
    directory,
    user,
    group,
    supplementary_groups,
    capabilities,
    no_new_privileges,
    seccomp,
    rlimits,
    oom_score_adj
});
wire_struct!(ExecPlan { container, stdin, stdout, stderr, terminal, process });
