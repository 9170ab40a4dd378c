// Package service holds what the lab's guest offers to its clients: HTTP, FTP
// and echo. It knows nothing of being a guest, so it is tested as an ordinary
// program.
//
// Both copies of a protected VM run these services and their output is
// compared packet by packet, where every difference costs a checkpoint. So
// replies contain nothing that differs from copy to copy or from moment to
// moment unless it is the point of the request: no Date header, no random
// values, times in whole seconds, lists in a fixed order.
//
// All services are safe for concurrent clients.
package service

// Ports of the services.
const (
	PortEcho = 7 // TCP and UDP
	PortFTP  = 21
	PortHTTP = 80
	// In the lab's guest FTP's passive data connections use the ports from PassiveFirst to
	// PassiveLast: one a transfer.
	PassiveFirst = 2100
	PassiveLast  = 2131
)
