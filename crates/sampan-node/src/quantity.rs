//! `resource.Quantity` of the typed API as whole numbers, rounded up. What does not parse is 0: the API server has
//! validated it.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sampan_api::quantity::Quantity as Number;

fn number(quantity: &Quantity) -> Number {
    quantity.0.parse().unwrap_or_default()
}

pub fn value(quantity: &Quantity) -> i64 {
    number(quantity).value()
}

/// Thousandths.
pub fn milli(quantity: &Quantity) -> i64 {
    number(quantity).milli_value()
}
