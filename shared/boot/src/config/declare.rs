//! How one declaration of a setting becomes its field, its reader and its documentation.

/// Declares sections and their settings: `name: type = default, limit;` below its doc comment, or `name: type =
/// default, limit, reloaded;` where a running process takes a change over.
///
/// Makes a struct for each section, `Settings` with all of them, their defaults, `Settings::read` for the
/// loader, `Settings::entries` for whatever shows settings to people, and `Settings::take_over` for a change.
macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])+
        [$section:ident] $Section:ident {
            $( $(#[doc = $doc:literal])+ $name:ident: $kind:ty = $default:expr, $limit:expr $(, $reloaded:ident)?; )+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section {
                $(
                    $(#[doc = $doc])+
                    #[doc = ""]
                    #[doc = concat!("Default `", stringify!($default), "`, limit `", stringify!($limit), "`.")]
                    pub $name: $kind,
                )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $name: $default, )+ }
                }
            }

            impl $Section {
                fn read(reader: &mut $crate::config::load::Reader<'_>) -> Self {
                    Self { $( $name: reader.take::<$kind>(
                        concat!(stringify!($section), ".", stringify!($name)), $default, &$limit,
                    ), )+ }
                }

                fn entries(&self, entries: &mut Vec<$crate::config::show::Entry>) {
                    $( entries.push($crate::config::show::Entry::of::<$kind>(
                        stringify!($section), stringify!($name), &[$($doc),+], &$default, &self.$name, &$limit,
                        $crate::config::declare::is_reloaded!($($reloaded)?),
                    )); )+
                }

                fn take_over(&mut self, new: &Self, changes: &mut Vec<$crate::config::Change>) {
                    $( if self.$name != new.$name {
                        let is_reloaded = $crate::config::declare::is_reloaded!($($reloaded)?);
                        if is_reloaded {
                            self.$name.clone_from(&new.$name);
                        }
                        let setting = concat!(stringify!($section), ".", stringify!($name));
                        changes.push($crate::config::Change { setting, is_reloaded });
                    } )+
                }
            }
        )+

        /// Every setting of every service; all values are within their limits.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Settings {
            $( $(#[doc = $section_doc])+ pub $section: $Section, )+
        }

        impl Settings {
            /// Paths of all settings, as `mqtt.listen`, in the order of their declaration.
            pub const PATHS: &'static [&'static str] =
                &[$($( concat!(stringify!($section), ".", stringify!($name)), )+)+];

            const SECTIONS: &'static [(&'static str, &'static [&'static str])] =
                &[$( (stringify!($section), &[$($section_doc),+]), )+];

            fn read(reader: &mut $crate::config::load::Reader<'_>) -> Self {
                Self { $( $section: $Section::read(reader), )+ }
            }

            fn entries(&self) -> Vec<$crate::config::show::Entry> {
                let mut entries = Vec::with_capacity(Self::PATHS.len());
                $( self.$section.entries(&mut entries); )+
                entries
            }

            /// Takes over what a running process can take over of `new`. Every setting that differs from it.
            fn take_over(&mut self, new: &Self) -> Vec<$crate::config::Change> {
                let mut changes = Vec::new();
                $( self.$section.take_over(&new.$section, &mut changes); )+
                changes
            }
        }
    };
}
pub(super) use settings;

/// What stands behind a setting's limit.
macro_rules! is_reloaded {
    (reloaded) => {
        true
    };
    () => {
        false
    };
}
pub(super) use is_reloaded;
