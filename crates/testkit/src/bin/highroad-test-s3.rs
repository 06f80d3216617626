//! `highroad-test-s3 FOLDER KEY_ID SECRET`: an S3-compatible store over a folder for the Python tests, which run it as
//! they run any server. It checks signatures and takes any free port; its address is the first line of stdout. A folder
//! in FOLDER is a bucket.

use std::error::Error;
use std::io::Write as _;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, key_id, secret] = &arguments[..] else { return Err("usage: FOLDER KEY_ID SECRET".into()) };
    let files = FileSystem::new(folder).map_err(|error| format!("cannot serve `{folder}`: {error:?}"))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(key_id.clone(), secret.clone()));
    let service = builder.build();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "http://{}", listener.local_addr()?)?;
    stdout.flush()?;
    loop {
        let (socket, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            // A client that hangs up is no business of a test store.
            drop(server.serve_connection(TokioIo::new(socket), service).await);
        });
    }
}
