//! The guest side of `wit/hooks.wit`. All bindings are generated here.
//!
//! Each interface that a plugin can export has a small world of its own. The linker merges the worlds that a plugin uses.
//! Plugins of one role and of both roles therefore share all types, and a component exports only what its author
//! implemented.

#![allow(missing_docs, reason = "generated from wit/hooks.wit, which has the documentation")]
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

/// Exports `validator`, and imports the interfaces that every plugin may use.
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
