//! What the server tells of itself.

use utoipa::ToSchema;

/// Every accepted name.
#[derive(ToSchema)]
pub(super) struct ModelList {
    object: ListObject,
    data: Vec<Model>,
}

#[derive(ToSchema)]
#[schema(description = "The kind of object.")]
#[serde(rename_all = "lowercase")]
enum ListObject {
    List,
}

/// An accepted name of the model.
#[derive(ToSchema)]
pub(super) struct Model {
    id: String,
    object: ModelObject,
    /// When the server started, in seconds since 1970.
    created: u64,
    owned_by: String,
    /// Tokens of prompt and answer together; null while the model is loaded.
    #[schema(required)]
    max_model_len: Option<u32>,
}

#[derive(ToSchema)]
#[schema(description = "The kind of object.")]
#[serde(rename_all = "lowercase")]
enum ModelObject {
    Model,
}

/// The process runs.
#[derive(ToSchema)]
pub(super) struct Live {
    /// `alive`
    status: String,
}

/// Whether new requests are welcome.
#[derive(ToSchema)]
pub(super) struct Ready {
    status: ReadyStatus,
    /// Why not.
    #[schema(nullable = false)]
    reason: Option<String>,
}

#[derive(ToSchema)]
#[schema(description = "Ready or not.")]
enum ReadyStatus {
    #[serde(rename = "ready")]
    Ready,
    #[serde(rename = "not ready")]
    NotReady,
}
