//! A hop that reads nothing of what it hands on: the least that anything between load and upstream can cost
//! on this machine.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

/// Starts a relay to an address on a thread of its own, where it stays until the process ends.
///
/// Errors: no port, or no thread.
pub(crate) fn start(to: SocketAddr) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    std::thread::Builder::new().spawn(move || {
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener of this runtime");
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    continue;
                };
                tokio::spawn(async move {
                    let far = TcpStream::connect(to).await?;
                    near.set_nodelay(true)?;
                    far.set_nodelay(true)?;
                    let (near, far) = (Arc::new(near), Arc::new(far));
                    tokio::spawn(pump(near.clone(), far.clone()));
                    pump(far, near).await
                });
            }
        });
    })?;
    Ok(address)
}

/// Hands bytes on until either side ends.
async fn pump(from: Arc<TcpStream>, to: Arc<TcpStream>) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        from.readable().await?;
        let read = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        let mut left = &buffer[..read];
        while !left.is_empty() {
            to.writable().await?;
            match to.try_write(left) {
                Ok(written) => left = &left[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}
