//! Whether and when a container that has ended runs again.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::spec::{PodExt, is_sidecar};
use super::state::{after, elapsed};

const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A container that ran this long is forgiven. Upstream's back-off expires after twice its longest pause.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// The pause before the next start of a container: none at first, then 10 s doubling to 5 min
/// (`k8s.io/client-go/util/flowcontrol/backoff.go`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backoff {
    pause: Duration,
    /// When the run ended that set the pause.
    updated: Option<Timestamp>,
}

impl Backoff {
    /// Counts a restart after a run that ended at `finished`.
    pub fn next(&mut self, finished: Timestamp, now: Timestamp) {
        let expired = self.updated.is_none_or(|updated| elapsed(updated, finished) > FORGIVEN_AFTER);
        self.pause = if expired || self.pause.is_zero() { FIRST_PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
        self.updated = Some(now);
    }

    /// Until when a container that ended at `finished` waits, and the whole pause; `None`: it may start now.
    pub fn wait(&self, finished: Timestamp, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let updated = self.updated?;
        if elapsed(updated, finished) > FORGIVEN_AFTER || elapsed(finished, now) >= self.pause {
            return None;
        }
        Some((after(finished, self.pause), self.pause))
    }
}

/// Whether a container of this pod that ended with `exit_code` is to run again: its own rules first, then its own
/// policy, then the pod's. An init container that succeeded is done whatever the policy says.
pub fn should_restart(pod: &Pod, container: &Container, is_init: bool, exit_code: i32) -> bool {
    if is_init && is_sidecar(container) {
        return true;
    }
    if is_init && exit_code == 0 {
        return false;
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        let applies = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if applies {
            return rule.action == "Restart" || rule.action == "RestartAllContainers";
        }
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| pod.restart_policy()) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes, PodSpec};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("in range")
    }

    #[test]
    fn the_first_restart_is_at_once_then_ten_seconds_doubling() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.wait(at(0), at(0)), None);
        backoff.next(at(0), at(0));
        let mut now = 0;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            let (until, pause) = backoff.wait(at(now), at(now)).expect("waits");
            assert_eq!((pause.as_secs(), until), (expected, at(now + expected as i64)));
            now += expected as i64;
            assert_eq!(backoff.wait(at(now - expected as i64), at(now)), None);
            backoff.next(at(now - expected as i64), at(now));
        }
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let mut backoff = Backoff::default();
        backoff.next(at(0), at(0));
        backoff.next(at(1), at(11));
        assert!(backoff.wait(at(612), at(612)).is_none());
        backoff.next(at(612), at(612));
        assert_eq!(backoff.wait(at(613), at(613)).map(|(_, pause)| pause.as_secs()), Some(10));
    }

    #[test]
    fn policies_and_rules() {
        let pod = |policy: &str| Pod {
            spec: Some(PodSpec { restart_policy: Some(policy.into()), ..PodSpec::default() }),
            ..Pod::default()
        };
        let plain = Container::default();
        let check = |policy: &str, container: &Container, is_init, code, expected| {
            assert_eq!(should_restart(&pod(policy), container, is_init, code), expected, "{policy} {code} {is_init}");
        };
        check("Always", &plain, false, 0, true);
        check("OnFailure", &plain, false, 0, false);
        check("OnFailure", &plain, false, 1, true);
        check("Never", &plain, false, 1, false);
        check("Always", &plain, true, 0, false);
        check("Always", &plain, true, 1, true);
        check("Never", &plain, true, 1, false);
        let sidecar = Container { restart_policy: Some("Always".into()), ..Container::default() };
        check("Never", &sidecar, true, 0, true);
        let ruled = Container {
            restart_policy: Some("Never".into()),
            restart_policy_rules: Some(vec![ContainerRestartRule {
                action: "Restart".into(),
                exit_codes: Some(ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) }),
            }]),
            ..Container::default()
        };
        check("Never", &ruled, false, 42, true);
        check("Always", &ruled, false, 41, false);
    }
}
