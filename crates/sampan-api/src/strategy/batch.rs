//! Jobs and CronJobs (`pkg/apis/batch`).

use serde_json::{Map, Value, json};

use super::at::At;
use super::pod::{defaults, spec};
use super::{GENERIC, Strategy, drop_status, set};
use crate::error::FieldErrors;
use crate::meta;
use crate::object;

pub const JOB: Strategy = Strategy {
    default: |job| {
        defaults::template(job, &["spec", "template"]);
        let labels = job["spec"]["template"]["metadata"]["labels"].clone();
        if labels.as_object().is_some_and(|labels| !labels.is_empty())
            && job["metadata"]["labels"].as_object().is_none_or(Map::is_empty)
        {
            object::metadata_mut(job).insert("labels".into(), labels);
        }
        default_job_spec(object::child_mut(job, "spec"));
    },
    prepare_create: |job| {
        drop_status(job);
        own_selector(job);
    },
    validate_create: |job| {
        let mut errors = FieldErrors::default();
        let root = At::root(job);
        let spec = root.get("spec");
        let selector = spec.get("selector");
        if !selector.is_set() {
            selector.required(&mut errors, "");
        }
        meta::validate_selector(&selector, &mut errors);
        job_spec(&spec, &mut errors);
        errors
    },
    validate_update: |new, old| {
        let mut errors = FieldErrors::default();
        let (root, before) = (At::root(new), At::root(old));
        let (spec, old_spec) = (root.get("spec"), before.get("spec"));
        job_spec(&spec, &mut errors);
        for field in
            ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
        {
            spec.get(field).immutable(&mut errors, &old_spec.get(field));
        }
        if spec.get("completionMode").text() != "Indexed" {
            spec.get("completions").immutable(&mut errors, &old_spec.get("completions"));
        }
        // A suspended job that has not started may still be steered elsewhere.
        let unstarted = old_spec.get("suspend").flag() && !before.get("status").get("startTime").is_set();
        if !unstarted {
            spec.get("template").immutable(&mut errors, &old_spec.get("template"));
        }
        errors
    },
    ..GENERIC
};

pub const CRON_JOB: Strategy = Strategy {
    default: |cron| {
        defaults::template(cron, &["spec", "jobTemplate", "spec", "template"]);
        let spec = object::child_mut(cron, "spec");
        set::empty(spec, "concurrencyPolicy", "Allow");
        set::unset(spec, "suspend", false);
        set::unset(spec, "successfulJobsHistoryLimit", 3);
        set::unset(spec, "failedJobsHistoryLimit", 1);
    },
    prepare_create: drop_status,
    validate_create: validate_cron,
    validate_update: |new, _| validate_cron(new),
    ..GENERIC
};

fn default_job_spec(spec: &mut Map<String, Value>) {
    if spec.get("completions").is_none_or(Value::is_null) && spec.get("parallelism").is_none_or(Value::is_null) {
        spec.insert("completions".into(), 1.into());
    }
    set::unset(spec, "parallelism", 1);
    let per_index = spec.get("backoffLimitPerIndex").is_some_and(|limit| !limit.is_null());
    set::unset(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    set::unset(spec, "completionMode", "NonIndexed");
    set::unset(spec, "suspend", false);
    set::unset(spec, "manualSelector", false);
    let policy =
        if spec.get("podFailurePolicy").is_some_and(Value::is_object) { "Failed" } else { "TerminatingOrFailed" };
    set::unset(spec, "podReplacementPolicy", policy);
    if let Some(failure) = set::child(spec, "podFailurePolicy") {
        for rule in set::each(failure, "rules") {
            set::each(rule, "onPodConditions").for_each(|pattern| set::empty(pattern, "status", "True"));
        }
    }
}

/// A job that does not bring a selector of its own selects by its uid, which the generic path has set.
fn own_selector(job: &mut Value) {
    if job["spec"]["manualSelector"] == Value::Bool(true) {
        return;
    }
    let (uid, name) = (object::uid(job).to_owned(), object::name(job).to_owned());
    let spec = object::child_mut(job, "spec");
    set::unset(spec, "selector", json!({}));
    set::unset(spec, "template", json!({}));
    if let Some(selector) = set::child(spec, "selector") {
        set::unset(selector, "matchLabels", json!({}));
        if let Some(labels) = set::child(selector, "matchLabels") {
            labels.insert("batch.kubernetes.io/controller-uid".into(), uid.clone().into());
        }
    }
    let Some(template) = set::child(spec, "template") else { return };
    set::unset(template, "metadata", json!({}));
    let Some(metadata) = set::child(template, "metadata") else { return };
    set::unset(metadata, "labels", json!({}));
    let Some(labels) = set::child(metadata, "labels") else { return };
    for (keys, value) in [
        (["controller-uid", "batch.kubernetes.io/controller-uid"], uid),
        (["job-name", "batch.kubernetes.io/job-name"], name),
    ] {
        for key in keys {
            labels.insert(key.into(), value.clone().into());
        }
    }
}

fn job_spec(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.get(field).not_negative(errors);
    }
    let mode = spec.get("completionMode");
    mode.none_or_one_of(errors, &["Indexed", "NonIndexed"]);
    if mode.text() == "Indexed" {
        let (completions, parallelism) = (spec.get("completions"), spec.get("parallelism"));
        if !completions.is_set() {
            completions.required(errors, "when completion mode is Indexed");
        }
        if completions.is_set() && parallelism.int().unwrap_or(0) > 100_000 {
            parallelism.invalid(errors, "must be less than or equal to 100000 when completion mode is Indexed");
        }
    }
    spec.get("podReplacementPolicy").none_or_one_of(errors, &["Failed", "TerminatingOrFailed"]);
    let template = spec.get("template");
    spec::template(&template, errors);
    let pod = template.get("spec");
    let policy = pod.get("restartPolicy");
    match policy.text() {
        "Always" | "" => policy.required(errors, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {}
        other => errors.not_supported(policy.path(), other, &["OnFailure", "Never"]),
    }
}

fn validate_cron(cron: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(cron);
    let name = root.get("metadata").get("name").text().to_owned();
    if name.len() > 52 {
        // Jobs append eleven characters to the name.
        errors.invalid(root.get("metadata").path().child("name"), name, "must be no more than 52 characters");
    }
    let spec = root.get("spec");
    let schedule = spec.get("schedule");
    if schedule.text().contains("TZ") {
        schedule.invalid(&mut errors, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
    spec.get("startingDeadlineSeconds").not_negative(&mut errors);
    spec.get("concurrencyPolicy").one_of(&mut errors, &["Allow", "Forbid", "Replace"]);
    let zone = spec.get("timeZone");
    if zone.is_set() && zone.text().is_empty() {
        zone.invalid(&mut errors, "timeZone must be nil or non-empty string");
    }
    let template = spec.get("jobTemplate");
    let job = template.get("spec");
    if job.get("manualSelector").flag() {
        errors.not_supported(job.get("manualSelector").path(), true, &["nil", "false"]);
    }
    job_spec(&job, &mut errors);
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        spec.get(field).not_negative(&mut errors);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Value {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
        (JOB.default)(&mut job);
        (JOB.prepare_create)(&mut job);
        job
    }

    #[test]
    fn a_job_selects_its_own_pods() {
        let job = job();
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!((&job["spec"]["completions"], &job["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        assert!((JOB.validate_create)(&job).is_empty());
    }

    #[test]
    fn a_job_ends() {
        let mut job = job();
        job["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        assert_eq!(
            (JOB.validate_create)(&job).aggregate(),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
    }

    #[test]
    fn what_a_running_job_keeps() {
        let old = job();
        let mut new = old.clone();
        new["spec"]["completions"] = 5.into();
        new["spec"]["parallelism"] = 5.into();
        assert_eq!(
            (JOB.validate_update)(&new, &old).aggregate(),
            "spec.completions: Invalid value: 5: field is immutable"
        );
    }
}
