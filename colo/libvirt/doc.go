// Package libvirt lets libvirt start a node's QEMUs, and looks at machines that libvirt runs already.
//
// A [Starter] makes each copy of a VM a real, transient domain of libvirt's: virsh lists it, opens its console and counts what it uses; its confinement and
// its cgroups are libvirt's. What makes the copy one of a pair (the disks' layout, the taps, the sockets) is passed by on QEMU's command line, and the
// whole of COLO goes over QMP sockets of our own: libvirt's passthrough has no out-of-band commands, so nothing could free a QEMU that waits for a dead peer.
// libvirt is therefore needed to start a copy and for nothing else. Finding it again, ending it and failing over are the same as for a QEMU
// that colod has started itself, and go on while libvirtd is being restarted, hangs, or is gone.
//
// A [Monitor] is libvirt's passthrough to the QEMU of a domain that is only looked at. [Examine] turns a domain's definition into a spec.
//
// # go-libvirt
//
// This is the only package that imports go-libvirt, whose calls know no deadline and whose events are lost when they carry no data. Every call
// goes through [Conn], which ends the connection when the context of a call ends (libvirtd may carry the call out all the same), and which completes
// such events on the wire.
//
// # Concurrency
//
// Everything may be called concurrently. A Conn has the goroutines of go-libvirt and ends them by Close; a call has one that ends with it, or with the
// connection.
package libvirt
