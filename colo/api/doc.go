// Package api carries the engine over HTTP and JSON: to operators on the local unix socket and over TLS with client certificates, and between nodes.
//
// [Server] serves a [colo.Node]; [Client] is its other end for programs, [Peer] the one for nodes, which implements [colo.Peer]. The document that
// openapi.yaml holds, served at /openapi.json, is the contract; a test compares it with the routes and every exchange of the tests with it.
//
// # Who may do what
//
// Each route names the least [pki.Role] that may use it. Over TLS the role is what the verified certificate says. On the unix socket the kernel says who calls:
// root and the daemon's own user are admins, others that the socket's permissions let in are operators. Calls between nodes need a certificate with the role
// node and the name of a configured peer.
//
// # Errors
//
// An error travels as [ErrorBody]: a code from one table, the exit code of a command line, a message, and what is needed to rebuild typed errors. On the
// client's side it is an [*Error] that wraps the same sentinels, so that errors.Is and errors.As give the same answers on both sides of the wire.
// A peer's answer counts as the engine's word only if the engine gave it: everything else (a refused certificate, a full queue, a body cut short)
// is a [colo.ErrPeerUnreachable], because it leaves open what the peer has done and proves nothing about its copy.
//
// # Long operations
//
// A request that takes long is answered at once with 202 and an [Operation], which runs on when the caller goes away, and can be read, waited for and
// cancelled. Operations live as long as the daemon: after its restart the VM's state machine goes on or takes back what was begun, and its status tells.
//
// # Events
//
// The node's last events are kept in order under numbers that begin anew with each run of the daemon. A reader that comes back names the last event it has
// seen and gets those after it; when some are gone, or the daemon was restarted, it is told so.
//
// # Concurrency
//
// All methods may be called concurrently, unless said otherwise.
package api
