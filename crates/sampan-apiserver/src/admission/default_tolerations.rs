//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or cannot be reached, unless it says
//! otherwise (`plugin/pkg/admission/defaulttolerationseconds`).

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::{child_mut, text};
use serde_json::{Value, json};

use super::{Operation, Plugin, Request, list_mut};

const SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        if matches!(request.operation, Operation::Create | Operation::Update) && request.is_for("", "pods") {
            tolerate(&mut request.object);
        }
        Ok(())
    }
}

fn tolerate(pod: &mut Value) {
    let tolerations = list_mut(child_mut(pod, "spec"), "tolerations");
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let said = tolerations.iter().any(|toleration| {
            let (own, effect) = (text(toleration, &["key"]), text(toleration, &["effect"]));
            (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !said {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_pod_says_stays() {
        let mut plain = json!({});
        tolerate(&mut plain);
        assert_eq!(plain["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
        let once = plain.clone();
        tolerate(&mut plain);
        assert_eq!(plain, once);
        let all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        let mut pod = all.clone();
        tolerate(&mut pod);
        assert_eq!(pod, all);
        let one = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "tolerationSeconds": 1});
        let mut pod = json!({"spec": {"tolerations": [one]}});
        tolerate(&mut pod);
        assert_eq!(pod["spec"]["tolerations"][0], one);
        assert_eq!(pod["spec"]["tolerations"][1]["key"], "node.kubernetes.io/unreachable");
    }
}
