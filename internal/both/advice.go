package both

import (
	"errors"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/netcompare"
)

// remedies say what to do about errors; the first that matches counts.
var remedies = []struct {
	err  error
	next string
}{
	{colo.ErrNoVM, "see: coloctl vm list"},
	{colo.ErrVMExists, "to change it: coloctl vm edit"},
	{colo.ErrSpecChanged, "read it again and repeat the change: coloctl vm edit"},
	{colo.ErrNotWhileRunning, "stop it first: coloctl vm stop"},
	{colo.ErrNoArbiter, "configure an arbiter on the nodes, or, if the other copy is surely dead: coloctl failover --force"},
	{arbiter.ErrUnreachable, "is the arbiter up, and its address right? see: coloctl doctor"},
	{colo.ErrNotCurrent, "see which copy is newer: coloctl status"},
	{colo.ErrNoPeer, "name a peer in the node's configuration"},
	{colo.ErrPeerUnreachable, "see: coloctl node list"},
	{colo.ErrImageMissing, "put the image back, or make the VM again: coloctl vm create"},
	{blockrepl.ErrInUse, "end the program that holds the image"},
	{netcompare.ErrNoBridge, "make the bridge on that node, or name another one in the VM's spec"},
	{api.ErrNoOperation, "see what became of it: coloctl status"},
	{api.ErrForbidden, "use a certificate with that role (coloctl pki issue)"},
	{api.ErrUnauthenticated, "make a certificate for yourself: coloctl pki issue"},
	{api.ErrNoRoute, "the daemon is older than this program: upgrade it"},
	{api.ErrBusy, "try again in a moment"},
	{pki.ErrNoAuthority, "make one: coloctl pki init"},
	{pki.ErrLooseMode, "chmod 0600 the file"},
	{pki.ErrRotating, "give ca.crt and new certificates to everybody, then: coloctl pki retire"},
	{pki.ErrExpired, "make a new certificate: coloctl pki issue --renew"},
	{api.ErrCertificate, "both sides need certificates of the same authority that are valid today: coloctl doctor"},
	{api.ErrUnreachable, "is colod running there? on that host: systemctl status colod, coloctl doctor"},
}

// Advice is what to do next about an error; empty if nothing is known.
func Advice(err error) string {
	var refused *colo.UnexpectedEventError
	switch {
	case errors.As(err, &refused):
		return refusedAdvice(refused)
	case errors.As(err, new(*pki.RefusalError)): // it says so itself
		return ""
	case errors.As(err, new(*colo.PeerMismatchError)):
		return "make both nodes alike"
	}
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return r.next
		}
	}
	return ""
}

// refusedAdvice says what is possible instead.
func refusedAdvice(e *colo.UnexpectedEventError) string {
	switch e.State {
	case colo.Stopped, colo.Outdated:
		if e.Event == "delete" {
			return ""
		}
		return "start it: coloctl vm start " + e.VM
	case colo.Solo:
		if e.Event == colo.ReqSwitchover {
			return "protect it first: coloctl protect " + e.VM
		}
		if e.Event == "delete" {
			return "stop it first: coloctl vm stop " + e.VM
		}
	case colo.Protected, colo.Syncing, colo.Attaching:
		switch e.Event {
		case "delete":
			return "stop it first: coloctl vm stop " + e.VM
		case colo.ReqEdit:
			return "let it run alone first: coloctl unprotect " + e.VM
		case colo.ReqForce:
			return "for a planned change of roles: coloctl switchover " + e.VM
		}
	case colo.Arbitrating:
		return "wait for the arbiter, or, if the other copy is surely dead: coloctl failover --force " + e.VM
	case colo.Failed:
		return "see why: coloctl history " + e.VM
	}
	return "see: coloctl status " + e.VM
}
