pub mod schema {
    pub fn validate(
        _: &sampan_api::schema::Schema,
        _: sampan_api::schema::TypeId,
        _: &serde_json::Value,
    ) -> sampan_api::FieldErrors {
        Default::default()
    }
}
