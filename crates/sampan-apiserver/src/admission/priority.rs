//! Priority: the number behind a pod's priority class, and at most one default class (`plugin/pkg/admission/priority`).

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::{child_mut, lookup, name, text};
use serde_json::Value;

use super::{Operation, Plugin, Request, forbidden};
use crate::lookup::Lookup;

const GROUP: &str = "scheduling.k8s.io";
const DEFAULT_POLICY: &str = "PreemptLowerPriority";

pub struct Priority {
    pub lookup: Arc<dyn Lookup>,
}

impl Priority {
    fn classes(&self) -> Vec<Value> {
        self.lookup.views(GROUP, "priorityclasses", "")
    }

    /// The default class; of several (two servers made one each) the one with the lowest value.
    fn default_class(&self) -> Option<Value> {
        let defaults = self.classes().into_iter().filter(|class| class["globalDefault"] == true);
        defaults.min_by_key(|class| (class["value"].as_i64().unwrap_or_default(), name(class).to_owned()))
    }

    fn pod(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        let asked = text(&request.object, &["spec", "priorityClassName"]);
        let class = if asked.is_empty() {
            self.default_class()
        } else {
            let class = self.lookup.value(GROUP, "priorityclasses", "", asked);
            Some(class.ok_or_else(|| forbidden(request, format!("no PriorityClass with name {asked} was found")))?)
        };
        let value = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or_default();
        let policy = class.as_ref().map(|class| text(class, &["preemptionPolicy"])).filter(|policy| !policy.is_empty());
        let policy = policy.unwrap_or(DEFAULT_POLICY).to_owned();
        if let Some(given) =
            lookup(&request.object, &["spec", "priority"]).and_then(Value::as_i64).filter(|given| *given != value)
        {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name"
            );
            return Err(forbidden(request, why));
        }
        let given = text(&request.object, &["spec", "preemptionPolicy"]);
        if !given.is_empty() && given != policy {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            );
            return Err(forbidden(request, why));
        }
        let spec = child_mut(&mut request.object, "spec");
        if let Some(class) = class {
            spec.insert("priorityClassName".into(), name(&class).into());
        }
        spec.insert("priority".into(), value.into());
        spec.insert("preemptionPolicy".into(), policy.into());
        Ok(())
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        if !request.is_for("", "pods") {
            return Ok(());
        }
        match request.operation {
            Operation::Create => self.pod(request),
            Operation::Update => {
                // A client that leaves it out does not mean to change it.
                for key in ["priority", "preemptionPolicy"] {
                    if let Some(old) = lookup(request.old, &["spec", key]) {
                        child_mut(&mut request.object, "spec").entry(key).or_insert_with(|| old.clone());
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Failure> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !request.is_for(GROUP, "priorityclasses") || request.object["globalDefault"] != true {
            return Ok(());
        }
        let own = name(&request.object);
        match self.default_class().filter(|other| name(other) != own) {
            Some(other) => Err(forbidden(
                request,
                format!("PriorityClass {} is already marked as default. Only one default can exist", name(&other)),
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::{kind, request};
    use crate::auth::User;
    use crate::lookup::testing::Objects;

    fn plugin(default: bool) -> Priority {
        let objects = Objects::default();
        objects.put(
            GROUP,
            "priorityclasses",
            &json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"}),
        );
        if default {
            objects.put(
                GROUP,
                "priorityclasses",
                &json!({"metadata": {"name": "usual"}, "value": 3, "globalDefault": true}),
            );
        }
        Priority { lookup: Arc::new(objects) }
    }

    async fn admit(default: bool, spec: Value) -> Result<Value, Failure> {
        let (kind, user) = (kind("", "v1", "pods", true), User::default());
        let mut asked = request(&kind, &user, Operation::Create, "ns", "p");
        asked.object = json!({ "spec": spec });
        plugin(default).mutate(&mut asked).await.map(|()| asked.object["spec"].clone())
    }

    #[tokio::test]
    async fn classes_become_numbers() {
        let high = admit(false, json!({"priorityClassName": "high"})).await.expect("admitted");
        assert_eq!((&high["priority"], &high["preemptionPolicy"]), (&json!(7), &json!("Never")));
        let none = admit(false, json!({})).await.expect("admitted");
        assert_eq!(none, json!({"priority": 0, "preemptionPolicy": DEFAULT_POLICY}));
        let usual = admit(true, json!({})).await.expect("admitted");
        assert_eq!((&usual["priority"], &usual["priorityClassName"]), (&json!(3), &json!("usual")));
        let unknown = admit(false, json!({"priorityClassName": "x"})).await.expect_err("refused");
        assert_eq!(unknown.message, r#"pods "p" is forbidden: no PriorityClass with name x was found"#);
        admit(false, json!({"priority": 9})).await.expect_err("not the class's");
    }

    #[tokio::test]
    async fn one_default_class() {
        let (kind, user) = (kind(GROUP, "v1", "priorityclasses", false), User::default());
        let mut asked = request(&kind, &user, Operation::Create, "", "new");
        asked.object = json!({"metadata": {"name": "new"}, "globalDefault": true});
        plugin(false).validate(&asked).await.expect("the first");
        plugin(true).validate(&asked).await.expect_err("a second");
        asked.object["metadata"]["name"] = "usual".into();
        plugin(true).validate(&asked).await.expect("the same");
    }
}
