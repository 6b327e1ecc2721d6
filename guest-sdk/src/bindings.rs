//! The guest side of `wit/hooks.wit`, generated. The only place where bindings are generated.
//!
//! One small world for each interface that a plugin exports; a plugin's world is the union of those it uses, which the
//! linker forms. So the plugin of one role and that of both share all types, and the component exports what its author
//! implemented and nothing else.

#![allow(missing_docs, reason = "generated from wit/hooks.wit, where everything is documented")]
#![allow(unsafe_code, reason = "the canonical ABI passes pointers")]
#![allow(clippy::all, reason = "generated code")]
#![allow(clippy::pedantic, clippy::restriction, reason = "generated code")]

/// Exports `configuration`.
pub mod configured {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package brink:guest-configured; world configured { export brink:hooks/configuration@0.1.0; }",
        world: "brink:guest-configured/configured",
        pub_export_macro: true,
        export_macro_name: "export_configuration",
        additional_derives: [PartialEq, Eq],
    });
}

/// Exports `validator`, and imports what every plugin may import.
pub mod validating {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package brink:guest-validating;
            world validating {
                import brink:hooks/store@0.1.0;
                import brink:hooks/log@0.1.0;
                export brink:hooks/validator@0.1.0;
            }",
        world: "brink:guest-validating/validating",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_validator",
        additional_derives: [PartialEq, Eq],
    });
}

/// Exports `transformer`.
pub mod transforming {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package brink:guest-transforming; world transforming { export brink:hooks/transformer@0.1.0; }",
        world: "brink:guest-transforming/transforming",
        with: { "brink:hooks/types@0.1.0": crate::bindings::validating::brink::hooks::types },
        pub_export_macro: true,
        export_macro_name: "export_transformer",
        additional_derives: [PartialEq, Eq],
    });
}
