// Package daemon is the node's daemon and the witness as programs: it reads configuration, opens what it names, joins the parts and ends them in order.
//
// It is a package so that more than one main can be made of it: cmd/colod has no more than the arbiters of this module, and the nested module of
// etcd has a main that adds its own. What a daemon does is in packages colo and api; here is wiring only.
//
// # Order
//
// At the start: store, arbiter, node (which takes over QEMUs that live), API, peer; then the service manager is told. At the end: requests, node, operations, arbiter,
// store. QEMUs are never touched by the daemon's end.
//
// # Signals
//
// SIGTERM and SIGINT end it, a second one at once. SIGHUP reads the file again and takes over what can change while it runs: the log's level and the addresses of
// the peer's daemon; the rest is named in the log and waits for a restart. Certificates are followed without being told.
package daemon
