use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_base::{Clock, Dice};

use super::{Behaviour, Fake, Operation};
use crate::contract::{self, IMAGE, Machine, container_config, sandbox_config};
use crate::{ContainerState, ContainerStatus, Error, ImageConfig, ImageErrorKind, Images as _, RegistryAuth, Runtime};

struct Memory(Fake);

impl Machine for Memory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.clone())
    }
    fn clock(&self) -> Clock {
        self.0.clock().clone()
    }
    fn log_directory(&self) -> PathBuf {
        PathBuf::from("/var/log/pods")
    }
    fn output(&self, status: &ContainerStatus) -> String {
        self.0.output(&status.id)
    }
    async fn restart(&mut self) {}
}

fn memory() -> Memory {
    let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let fake = Fake::new(clock, Dice::seeded(1));
    fake.add_image(IMAGE, ImageConfig::default()).expect("an image");
    Memory(fake)
}

#[tokio::test(start_paused = true)]
async fn obeys_the_contract() {
    contract::run(&mut memory()).await;
}

#[tokio::test(start_paused = true)]
async fn two_runs_on_one_seed_are_the_same() {
    let mut traces = Vec::new();
    for _ in 0..2 {
        let mut machine = memory();
        contract::run(&mut machine).await;
        traces.push(machine.0.calls());
    }
    assert_eq!(traces[0], traces[1]);
}

#[tokio::test(start_paused = true)]
async fn behaviours_follow_the_attempts_and_failures_come_once() {
    let machine = memory();
    let fake = &machine.0;
    fake.behave("app", [Behaviour::exits(1), Behaviour::default()]);
    let sandbox = fake.run_sandbox(&sandbox_config(&machine, "pod")).await.expect("a sandbox");
    let start = async |attempt| {
        let config = crate::ContainerConfig { attempt, ..container_config("app", &[]) };
        let id = fake.create_container(&sandbox.id, &config).await.expect("a container");
        fake.start_container(&id).await.expect("it starts");
        fake.clock().sleep(Duration::from_secs(3600)).await;
        fake.container(&id).await.expect("a status")
    };
    assert_eq!(start(0).await.exit_code, 1);
    let second = start(1).await;
    assert_eq!(second.state, ContainerState::Running);
    assert_eq!(start(2).await.state, ContainerState::Running);

    fake.oom(&second.id);
    let status = fake.container(&second.id).await.expect("a status");
    assert_eq!((status.exit_code, status.oom_killed), (137, true));

    fake.fail_next(Operation::StopSandbox, Error::System("busy".to_owned()));
    assert_eq!(fake.stop_sandbox(&sandbox.id).await, Err(Error::System("busy".to_owned())));
    assert_eq!(fake.stop_sandbox(&sandbox.id).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn registries_want_the_right_password_and_take_their_time() {
    let fake = memory().0;
    let auth = RegistryAuth { username: "me".to_owned(), password: "secret".to_owned(), ..RegistryAuth::default() };
    let config = ImageConfig { user: "7".to_owned(), ..ImageConfig::default() };
    fake.publish("private/app:1", config, Duration::from_secs(9), Some(auth.clone())).expect("published");
    let refused = fake.pull("private/app:1", None).await;
    assert!(matches!(refused, Err(Error::Image { kind: ImageErrorKind::Unauthorized, .. })));
    assert_eq!(fake.get("private/app:1").await, Ok(None));
    let started = fake.clock().instant();
    let image = fake.pull("private/app:1", Some(&auth)).await.expect("an image");
    assert_eq!(started.elapsed(), Duration::from_secs(9));
    for name in ["private/app:1", &image.id, &image.digests[0]] {
        assert_eq!(fake.get(name).await.expect("a look-up"), Some(image.clone()), "{name}");
    }
    fake.remove("private/app:1").await.expect("removed");
    assert_eq!(fake.get(&image.id).await, Ok(None));
}
