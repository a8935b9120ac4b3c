//! `member-app init`: the tables and the first members.

use tokio_postgres::{Client, Transaction};

use crate::error::{AnyError, database_message};
use crate::uploads::Uploads;
use crate::{database, password};

const SCHEMA: &str = include_str!("schema.sql");
/// Those who may log in; all with the password of `init`.
const USERS: [&str; 3] = ["desk", "treasurer", "smoke"];
const PICTURES: usize = 12;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database, as postgresql://user@host:port/name.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
    /// The directory for media files.
    #[arg(long)]
    uploads: std::path::PathBuf,
    /// The first password of every user; from the environment, so that it is in no list of processes.
    #[arg(long, env = "MEMBER_APP_PASSWORD", hide_env_values = true)]
    password: String,
    /// How many members to begin with.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(i32).range(1..=1_000_000))]
    members: i32,
}

/// Makes tables and first rows in one transaction; says so and changes nothing if they are there.
pub(crate) async fn run(args: &Args) -> Result<(), AnyError> {
    let mut client = database::connect(&database::parse(&args.database_url)?).await?;
    let uploads = Uploads::new(&args.uploads);
    uploads.create().map_err(|error| format!("cannot make {}: {error}", args.uploads.display()))?;
    if has_tables(&client).await? {
        println!("the tables are there already; nothing changed");
        return Ok(());
    }
    let transaction = client.transaction().await?;
    seed(&transaction, &uploads, args).await?;
    transaction.commit().await.map_err(|error| database_message(&error))?;
    println!("made the tables and {} members", args.members);
    Ok(())
}

async fn has_tables(client: &Client) -> Result<bool, AnyError> {
    let row = client.query_one("SELECT to_regclass('members') IS NOT NULL", &[]).await;
    Ok(row.map_err(|error| database_message(&error))?.get(0))
}

async fn seed(transaction: &Transaction<'_>, uploads: &Uploads, args: &Args) -> Result<(), AnyError> {
    let told = |error: tokio_postgres::Error| database_message(&error);
    transaction.batch_execute(SCHEMA).await.map_err(told)?;
    for user in USERS {
        let hash = password::hash(&args.password)?;
        let insert = "INSERT INTO users (name, password_hash) VALUES ($1, $2)";
        transaction.execute(insert, &[&user, &hash]).await.map_err(told)?;
    }
    transaction.execute(MEMBERS, &[&args.members]).await.map_err(told)?;
    transaction.batch_execute(PAYMENTS).await.map_err(told)?;
    for number in 1..=PICTURES {
        let (title, reference) = (format!("Picture {number}"), format!("seed-{number}"));
        let picture = picture(number);
        let (path, sha256) = uploads.put(picture.as_bytes())?;
        let bytes = i64::try_from(picture.len())?;
        transaction.execute(MEDIA, &[&title, &reference, &path, &sha256, &bytes]).await.map_err(told)?;
    }
    Ok(())
}

const MEMBERS: &str = "
    INSERT INTO members (name, email, status, joined_at)
    SELECT (ARRAY['Ada','Bo','Chris','Dana','Eli','Finn','Gwen','Hana','Ines','Jo'])[1 + n % 10] || ' ' ||
           (ARRAY['Adler','Brook','Castro','Dietz','Ebert','Fox','Grant','Hahn','Ito'])[1 + n % 9] || ' ' || n,
           'member' || n || '@example.org',
           (ARRAY['approved','approved','approved','pending','suspended'])[1 + n % 5],
           now() - n * interval '7 hours'
    FROM generate_series(1, $1) AS n";

const PAYMENTS: &str = "
    INSERT INTO payments (member_id, amount_cents, method, reference, entered_by, entered_at)
    SELECT m.id, 500 + (m.id * 37 + k * 101) % 9500, (ARRAY['cash','card','transfer'])[1 + (m.id + k) % 3],
           'seed-' || m.id || '-' || k, 1 + k % 2, now() - (m.id + k) * interval '3 hours'
    FROM members m, generate_series(1, 10) AS k;
    INSERT INTO payment_audit (payment, action, user_id, amount_cents, at)
    SELECT reference, 'entered', entered_by, amount_cents, entered_at FROM payments";

const MEDIA: &str = "
    INSERT INTO media (title, reference, path, sha256, bytes, uploaded_by)
    VALUES ($1, $2, $3, $4, $5, 1)";

/// A small drawing, different for every number.
fn picture(number: usize) -> String {
    let hue = number * 360 / PICTURES;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 100 100\">\
         <rect width=\"100\" height=\"100\" fill=\"hsl({hue} 60% 80%)\"/>\
         <circle cx=\"50\" cy=\"50\" r=\"{}\" fill=\"hsl({hue} 60% 40%)\"/></svg>\n",
        10 + number * 2
    )
}
