//! TaintNodesByCondition: a new node takes no pods before it is known to be ready
//! (`plugin/pkg/admission/nodetaint`).

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::{child_mut, text};
use serde_json::{Value, json};

use super::{Operation, Plugin, Request, list_mut};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        if request.operation == Operation::Create && request.is_for("", "nodes") {
            taint(&mut request.object);
        }
        Ok(())
    }
}

fn taint(node: &mut Value) {
    let taints = list_mut(child_mut(node, "spec"), "taints");
    let is = |taint: &Value| text(taint, &["key"]) == NOT_READY && text(taint, &["effect"]) == "NoSchedule";
    if !taints.iter().any(is) {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once() {
        let mut node = json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}});
        taint(&mut node);
        taint(&mut node);
        let taints = json!([{"key": "a", "effect": "NoExecute"}, {"key": NOT_READY, "effect": "NoSchedule"}]);
        assert_eq!(node["spec"]["taints"], taints);
    }
}
