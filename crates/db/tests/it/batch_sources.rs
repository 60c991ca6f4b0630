//! What a batch may be loaded from.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use greenwave_db::{BatchConfig, BatchLoader};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[cfg(feature = "postgres")]
#[tokio::test]
async fn keys_of_two_columns_are_one_statement_on_postgres() {
    use greenwave_db::{PoolConfig, postgres::Pool};

    let pool =
        Pool::connect(&greenwave_test_servers::postgres_database(), PoolConfig::default()).await.unwrap();
    let fill = "CREATE TABLE prices (product_id bigint, currency text, cents bigint NOT NULL,
                                     PRIMARY KEY (product_id, currency));
        INSERT INTO prices SELECT n, c, n * 100 + length(c)
        FROM generate_series(1, 500) AS n, unnest(ARRAY['EUR', 'US$, \"\\']) AS c";
    sqlx::raw_sql(fill).execute(&pool).await.unwrap();
    let calls: Arc<Mutex<Vec<usize>>> = Arc::default();
    let recorded = Arc::clone(&calls);
    let prices = BatchLoader::new("prices", BatchConfig::default(), move |keys: Vec<(i64, String)>| {
        recorded.lock().unwrap().push(keys.len());
        let pool = pool.clone();
        async move {
            let (products, currencies): (Vec<i64>, Vec<String>) = keys.into_iter().unzip();
            let statement = "SELECT product_id, currency, cents FROM prices
                JOIN unnest($1::bigint[], $2::text[]) AS asked (product_id, currency)
                USING (product_id, currency)";
            let rows: Vec<(i64, String, i64)> =
                sqlx::query_as(statement).bind(products).bind(currencies).fetch_all(&pool).await?;
            let prices = rows.into_iter().map(|(product, currency, cents)| ((product, currency), cents));
            Ok::<_, sqlx::Error>(prices.collect())
        }
    });

    let keys = [(7, "EUR"), (7, "US$, \"\\"), (8, "EUR"), (7, "GBP"), (501, "EUR")];
    let cents =
        prices.load_many(keys.map(|(product, currency)| (product, currency.to_owned()))).await.unwrap();
    assert_eq!(cents, [Some(703), Some(707), Some(803), None, None]);
    assert_eq!(*calls.lock().unwrap(), [5]);
}

/// A service that answers `GET /customers?ids=1,2` with their names, and notes what it was asked.
async fn service(asked: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = client.read(&mut request).await.unwrap();
            let line = String::from_utf8_lossy(&request[..length]).lines().next().unwrap().to_owned();
            let ids = line.split(['=', ' ']).nth(2).unwrap().split(',').filter(|id| *id != "404");
            let names: HashMap<&str, String> = ids.map(|id| (id, format!("Customer {id}"))).collect();
            let body = serde_json::to_string(&names).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
            asked.lock().unwrap().push(line);
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

/// Stands in for an HTTP client, of which this crate has none.
async fn get(address: SocketAddr, path: &str) -> io::Result<HashMap<u32, String>> {
    let mut server = TcpStream::connect(address).await?;
    server.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    server.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::from_str(body)?)
}

#[tokio::test]
async fn a_service_over_http_gets_one_request_for_many_keys() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let address = service(Arc::clone(&asked)).await;
    let customers = BatchLoader::new("customers", BatchConfig::default(), move |ids: Vec<u32>| async move {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        get(address, &format!("/customers?ids={}", ids.join(","))).await
    });
    let names = customers.load_many([3, 404, 5]).await.unwrap();
    assert_eq!(names, [Some("Customer 3".to_owned()), None, Some("Customer 5".to_owned())]);
    assert_eq!(*asked.lock().unwrap(), ["GET /customers?ids=3,404,5 HTTP/1.1"]);
}
