use anyhow::Context;
use greenwave_shop::seed::SeedSize;
use greenwave_shop::store::Store;
use rusqlite::Connection;

use crate::report::figures;
use crate::{BoxError, Setup};

/// The path of a SQLite file in a temporary folder.
pub(super) async fn one(setup: &Setup, size: SeedSize) -> Result<String, BoxError> {
    let shop = format!("{}/shop.db", folder(setup)?);
    fill(setup, &shop, size).await?;
    Ok(shop)
}

/// Two SQLite files in a temporary folder.
pub(super) async fn copies(setup: &Setup, size: SeedSize, naive: bool) -> Result<(Store, Store), BoxError> {
    let folder = folder(setup)?;
    let [seeded, before, after] = ["seeded", "before", "after"].map(|name| format!("{folder}/{name}.db"));
    fill(setup, &seeded, size).await?;
    setup.shield(copy(seeded, [before.clone(), after.clone()])).await?;
    Ok((super::open(setup, &url(&before), naive).await?, super::open(setup, &url(&after), false).await?))
}

fn folder(setup: &Setup) -> Result<String, BoxError> {
    let folder = setup.temp_dir()?.into_os_string().into_string();
    Ok(folder.map_err(|_| "the name of the temporary folder is not UTF-8")?)
}

async fn fill(setup: &Setup, path: &str, size: SeedSize) -> Result<(), BoxError> {
    setup.fact("database", format!("SQLite {}, in this process", rusqlite::version()));
    setup.note(&format!(
        "seeding {} orders into a temporary SQLite file, which is removed at the end",
        figures::count(size.orders.unsigned_abs())
    ));
    // Shielded: the folder must not go while a thread still writes into it.
    setup.shield(super::seed(setup.clone(), url(path), size)).await
}

fn url(path: &str) -> String {
    format!("sqlite:{path}")
}

/// Copies the file twice, so that both copies are laid out alike, and removes it.
async fn copy(seeded: String, copies: [String; 2]) -> Result<(), BoxError> {
    let copying = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let db = Connection::open(&seeded)?;
        for copy in copies {
            db.execute("VACUUM INTO ?1", [copy])
                .context("could not copy the seeded file: is there room in the temporary folder?")?;
        }
        drop(db);
        std::fs::remove_file(seeded)?;
        Ok(())
    });
    Ok(copying.await??)
}
