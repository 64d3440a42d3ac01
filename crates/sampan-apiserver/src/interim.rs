pub mod default {
    pub fn apply_defaults(_: &sampan_api::schema::Schema, _: sampan_api::schema::TypeId, _: &mut serde_json::Value) {}
}
pub mod meta {
    pub fn validate(_: &serde_json::Value, _: sampan_api::strategy::NameRule, _: bool) -> sampan_api::FieldErrors {
        Default::default()
    }
}
pub mod schema {
    pub fn validate(
        _: &sampan_api::schema::Schema,
        _: sampan_api::schema::TypeId,
        _: &serde_json::Value,
    ) -> sampan_api::FieldErrors {
        Default::default()
    }
}
