package colo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Peer is what one node may ask of another. Failover needs none of it. Every method may be called at any moment and more than once; an error
// that wraps [ErrPeerUnreachable] leaves open whether the call was carried out.
type Peer interface {
	// Hello tells who the peer is and what it runs.
	Hello(ctx context.Context) (NodeInfo, error)
	// Prepare makes a standby of a VM on the peer. A standby that is there already is dropped first.
	Prepare(ctx context.Context, r PrepareRequest) (PrepareReply, error)
	// Drop ends the peer's standby or secondary: the caller's copy goes on alone with the record of r.
	Drop(ctx context.Context, r DropRequest) error
	// Confirm tells the peer that COLO is proven and that its copy counts from this record on.
	Confirm(ctx context.Context, rec arbiter.Record) error
	// TakeOver hands the VM over: the caller's copy is dead, the record names the peer alone.
	TakeOver(ctx context.Context, rec arbiter.Record) error
	// ReportDead is the caller's proof that its copy is dead and will not be started again as it is. An error that does not wrap
	// ErrPeerUnreachable means that the peer has no copy that could go on.
	ReportDead(ctx context.Context, r Report) error
	// ReportChannelLost tells that the caller's side of the replication has ended.
	ReportChannelLost(ctx context.Context, r Report) error
	// Sums hashes a part of a disk of the standby that the caller prepared for a resync, or of its secondary.
	Sums(ctx context.Context, r SumsRequest) (SumsReply, error)
	// Checkpoint returns after a checkpoint of the peer's primary that begins after the call.
	Checkpoint(ctx context.Context, r CheckpointRequest) error
	// Inquire tells how the VM stands on the peer.
	Inquire(ctx context.Context, vm string) (PeerVM, error)
	// Held asks the arbiter that the peer asks for its record of a VM, named by its id.
	Held(ctx context.Context, id string) (arbiter.Record, error)
}

// NodeInfo describes a node.
type NodeInfo struct {
	Name  string `json:"name"`
	Links []Link `json:"links"`
	QEMU  string `json:"qemu"`  // version, for example 11.1.3
	Accel string `json:"accel"` // kvm or tcg
	// Starter is who starts the node's QEMUs; empty is the node itself.
	Starter string `json:"starter,omitempty"`
	Plain   bool   `json:"plain,omitempty"` // replication is not encrypted
	MPTCP   bool   `json:"mptcp,omitempty"` // it can use several links at once
	Port    int    `json:"port"`            // of the heartbeats
	// HeartbeatInterval and HeartbeatTimeout, in nanoseconds, have to be the same on both nodes: each counts on what the other keeps. 0 is unknown.
	HeartbeatInterval time.Duration `json:"heartbeat_interval,omitempty"`
	HeartbeatTimeout  time.Duration `json:"heartbeat_timeout,omitempty"`
}

// PrepareRequest asks for a standby.
type PrepareRequest struct {
	From       string `json:"from"`
	ID         string `json:"id"` // of the VM
	Spec       *Spec  `json:"spec"`
	Generation uint64 `json:"generation"`     // the caller's current one
	Want       string `json:"want,omitempty"` // of the VM's owner
	QEMU       string `json:"qemu"`
	Accel      string `json:"accel"`
	Starter    string `json:"starter,omitempty"`
	Plain      bool   `json:"plain,omitempty"`
	MPTCP      bool   `json:"mptcp,omitempty"`
	Resync     string `json:"resync,omitempty"` // id of the resync that will write to the standby's disks
	// Media are the SHA-256 sums of the caller's read-only disks, by name.
	Media map[string]string `json:"media,omitempty"`
	// Attempt tells this request from every other one of the caller's; 0 is unknown. A call that is carried out twice does nothing the second time.
	Attempt int64 `json:"attempt,omitempty"`
}

// CheckpointRequest asks the node of the primary for a checkpoint.
type CheckpointRequest struct {
	VM   string `json:"vm"`
	From string `json:"from"`
}

// SumsRequest asks for the hashes of the blocks of a standby's disk, see [blockrepl.Content.Sums].
type SumsRequest struct {
	VM     string `json:"vm"`
	From   string `json:"from"`
	Resync string `json:"resync"` // the one of the PrepareRequest; empty compares the halves of a protected VM
	// Generation is that of a protected VM.
	Generation uint64 `json:"generation,omitempty"`
	Disk       string `json:"disk"`
	Offset     int64  `json:"offset"`
	Length     int64  `json:"length"`
	// Key is the comparison's secret, see [blockrepl.NewKey].
	Key []byte `json:"key"`
}

// SumsReply has the hashes one after the other.
type SumsReply struct {
	Sums []byte `json:"sums"`
	// Keyed says that the request's key was used. A node that knows none answers with hashes of another kind.
	Keyed bool `json:"keyed"`
}

// DropRequest ends a standby or a secondary.
type DropRequest struct {
	arbiter.Record
	Attempt int64 `json:"attempt,omitempty"` // whose standby; one of a later attempt is spared. 0: whichever is there
}

// Report is news of the caller's copy. One that is about an older generation than the receiver's is late, and ignored.
type Report struct {
	VM         string `json:"vm"`
	From       string `json:"from"`
	Generation uint64 `json:"generation"`
}

// PrepareReply tells where the standby listens, and what its disks held before.
type PrepareReply struct {
	Endpoint Endpoint `json:"endpoint"`
	// SyncedAt is the generation at which the disks were last equal to the primary's and since which only COLO wrote to them; 0 when that
	// is not known.
	SyncedAt uint64 `json:"synced_at"`
	// Resync is the id of the resync that has last written to the disks, and since which nothing else has; empty if there is none.
	Resync string `json:"resync,omitempty"`
	// New says that every disk's image was made just now: all zeroes.
	New bool `json:"new,omitempty"`
}

// PeerVM is a VM as the peer sees it.
type PeerVM struct {
	State      State    `json:"state"`
	Generation uint64   `json:"generation"`
	Members    []string `json:"members"`
	Running    bool     `json:"running"`           // a QEMU of it is there
	Answers    bool     `json:"answers,omitempty"` // and has answered just now
	Want       string   `json:"want,omitempty"`    // of the VM's owner, as the peer knows
	Lacks      bool     `json:"lacks,omitempty"`   // a half of a disk there is out of service
}

// runs says whether a copy is there that speaks, or may be about to: a QEMU of it that is more than a standby, whose guest does not run yet.
func (v PeerVM) runs() bool { return v.Running && v.State != Standby }

// Errors of the cooperation between nodes.
var (
	// ErrNoPeer is returned when a VM is to be protected by a node that has no peer.
	ErrNoPeer = errors.New("this node has no peer")
	// ErrNotCandidate is returned for a node that the VM's spec does not name.
	ErrNotCandidate = errors.New("no candidate for the VM")
	// ErrPeerUnreachable is returned when a peer did not answer.
	ErrPeerUnreachable = errors.New("peer unreachable")
	// ErrGenerationOld is returned to a peer whose record is older than the one known here.
	ErrGenerationOld = errors.New("generation is older than the one known here")
	// ErrNothingToGoOn is returned to a node that reports its copy dead when no copy here could go on.
	ErrNothingToGoOn = errors.New("no copy here could go on")
	// ErrPeerProtocol is returned when the versions of two nodes are too far apart. It comes with ErrPeerUnreachable: nothing can be said of the peer.
	ErrPeerProtocol = errors.New("the nodes' versions are too far apart")
	// ErrGuestOff is returned to a secondary that has lost the replication when the primary's guest has switched itself off.
	ErrGuestOff = errors.New("the guest has switched itself off here, and the disks here are the last word")
)

// PeerMismatchError says why two nodes can't protect a VM together.
type PeerMismatchError struct {
	What        string
	Here, There string
}

func (e *PeerMismatchError) Error() string {
	return fmt.Sprintf("%s differs: %s here, %s on the peer", e.What, e.Here, e.There)
}
