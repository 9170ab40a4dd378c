package colo

import (
	"context"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/state"
)

// Endpoint is where a standby listens: one address, the ports of the VM.
type Endpoint struct {
	Host      string              `json:"host"`
	Primary   string              `json:"primary"` // address that the primary connects from; empty if unknown
	Migration int                 `json:"migration"`
	NBD       int                 `json:"nbd"`
	NICs      map[string]NICPorts `json:"nics,omitempty"`
	MPTCP     bool                `json:"mptcp,omitempty"`
	More      []Path              `json:"more,omitempty"` // the other links; only with MPTCP
	Key       Key                 `json:"key,omitempty"`  // of all its connections; they are not encrypted without
}

// Replication is how a copy's memory, disks and packets go to the peer at this moment: what its QEMU says of encryption, and the kernel of its connections.
type Replication struct {
	Encrypted   bool     `json:"encrypted"`
	Connections int      `json:"connections"`
	MPTCP       bool     `json:"mptcp"` // all of them can use several links
	Links       []string `json:"links"` // that work and carry each of them
	// Listens are the addresses on which its QEMU takes connections from other hosts, as the kernel tells them.
	Listens []string `json:"listens"`
}

// Path is another link that leads to a standby.
type Path struct {
	Host    string `json:"host"`
	Primary string `json:"primary"`
}

// NICPorts are the two streams of one NIC.
type NICPorts struct {
	Mirror  int `json:"mirror"`
	Compare int `json:"compare"`
}

// CopyEvent is something the QEMU of a copy does by itself.
type CopyEvent struct {
	Kind EventKind // Exited, Hung, ColoStarted, ChannelLost, DiskFailed, GuestShutdown
	Text string    // what exactly, for people
	Disk string    // of DiskFailed: this node's half of it fails; a primary has let go of it and goes on through the peer's
	Time time.Time
}

// SyncRequest says how the disks are to be made equal.
type SyncRequest struct {
	To       Endpoint
	Mode     blockrepl.Mode
	Speed    int64                    // bytes a second; 0 is no limit
	Paused   bool                     // begins paused
	Progress func(blockrepl.Progress) // called often, must not block

	// Of mode checksum.
	Sums blockrepl.Sums                    // asks the peer for its hashes
	From map[string]int64                  // where an interrupted comparison goes on, by disk; nil begins anew
	Save func(disk string, compared int64) // what differs before that is on the copy's record
}

// SyncResult is what a resync cost.
type SyncResult struct {
	Mode     blockrepl.Mode `json:"mode"`
	Why      string         `json:"why,omitempty"`      // that mode
	Copied   int64          `json:"copied"`             // bytes sent to the peer
	Compared int64          `json:"compared,omitempty"` // bytes that each side has hashed
	Differed int64          `json:"differed,omitempty"` // bytes of those that were not equal
	// Last is how many of the bytes were sent while the guest stood still, LastTook how long that took.
	Last     int64         `json:"last,omitempty"`
	LastTook time.Duration `json:"last_took,omitempty"`
	Took     time.Duration `json:"took,omitempty"` // all of it, from the preparation of the standby on
}

// Copy is one QEMU process of a VM with its disks and NICs. The engine calls the methods of a copy from one goroutine at a time, except
// Events, PID, Stats, Alive, Cut, Kill, Sums, Local, Mark, Backup, Checkpoint, TuneSync and DropDisk, which may be called at any moment.
type Copy interface {
	// Events is closed after Exited. The reader must keep reading.
	Events() <-chan CopyEvent
	PID() int
	// Instance is what is needed to find this copy again after a restart of the node.
	Instance() state.Instance
	// Disconnect lets go of the copy, which runs on. Nothing else may be called afterwards; Events is closed without Exited.
	Disconnect()
	Stats() CheckpointStats
	// Alive returns nil if the copy answers before ctx ends, whatever its guest or its peer are doing.
	Alive(ctx context.Context) error

	// Join puts the NICs' taps into their bridges, Cut takes them out: the copy neither hears nor speaks then. Both are idempotent.
	Join(ctx context.Context) error
	Cut(ctx context.Context) error
	// Cont starts the guest of a copy that was launched paused.
	Cont(ctx context.Context) error
	// Powerdown asks the guest to shut down and waits until it has. Kill ends QEMU at once and waits for its end.
	Powerdown(ctx context.Context) error
	Kill(ctx context.Context) error

	// Listen makes a standby ready for the primary. Promote turns a secondary into a lone copy, silent until Join.
	Listen(ctx context.Context, at Endpoint) error
	Promote(ctx context.Context) error
	// DropDisk takes this node's half of a disk out of a primary in COLO: its guest goes on through the peer's.
	DropDisk(ctx context.Context, disk string) error
	// Local opens what a running primary's own halves hold; Mark puts parts of one on the record of writes. Neither disturbs COLO.
	Local(ctx context.Context) (sums blockrepl.Sums, closeAll func(context.Context) error, err error)
	Mark(ctx context.Context, disk string, ranges []blockrepl.Range) error
	// Backup copies the disks that have a target, or all to a server, as they are at one moment; the guest goes on, in COLO or alone.
	Backup(ctx context.Context, o blockrepl.BackupOptions) error
	// Sums hashes a part of a standby's or a secondary's disk.
	Sums(ctx context.Context, p blockrepl.Part) ([]byte, error)
	// Commit waits until the images of a promoted copy hold all its data and removes what it needed until then.
	Commit(ctx context.Context) error
	// Announce tells the switches of the LAN where the guest is now.
	Announce(ctx context.Context) error

	// The way of a lone copy into COLO, in this order. Release leads back from any point of it, also with a dead or frozen peer: the guest
	// runs on alone then, its tap as it was.
	BitmapCovers(ctx context.Context) (dirty int64, ok bool, err error)
	SyncDisks(ctx context.Context, r SyncRequest) error
	// TuneSync changes the limit, in bytes a second, of a SyncDisks that runs, and makes it pause or go on. It does nothing when none runs.
	TuneSync(ctx context.Context, speed int64, paused bool) error
	Connect(ctx context.Context, to Endpoint) error    // network comparison, not yet in force
	CopyMemory(ctx context.Context, to Endpoint) error // returns with the guest stopped
	SwitchDisks(ctx context.Context) (SyncResult, error)
	StartColo(ctx context.Context) error // the guest runs again
	ProveColo(ctx context.Context) error // returns after the first checkpoint that both sides have ended
	Release(ctx context.Context) error

	// Checkpoint forces one and returns when it has ended. On a primary in COLO it may be called at any moment.
	Checkpoint(ctx context.Context) error
}

// View is what a copy that was found again is doing.
type View struct {
	Mode     string   // of COLO: none, primary or secondary
	Incoming bool     // a standby that waits for the primary
	Off      bool     // the guest has switched itself off
	Cut      bool     // a tap is not in its bridge
	Gone     []string // disks whose half on this node was taken out of a primary in COLO
	PeerBad  string   // a write to the peer's half failed while nobody listened: which
}

// LaunchRequest says which copy to start.
type LaunchRequest struct {
	Spec    *Spec
	ID      string // of the VM
	Standby bool   // wait for the primary's memory instead of booting
}

// Launcher starts copies and cleans up after them.
type Launcher interface {
	// Check finds out, without changing anything, why a VM can't run here: missing images, no such bridge, a QEMU that is not fit.
	Check(ctx context.Context, s *Spec) error
	// CreateImages makes the disk images that are missing and says which it made.
	CreateImages(ctx context.Context, s *Spec) (made []string, err error)
	// Grow makes disk images that are smaller than the spec says as large as it says.
	Grow(ctx context.Context, s *Spec) error
	// Launch starts a copy, paused and with its taps out of the bridges.
	Launch(ctx context.Context, r LaunchRequest) (Copy, error)
	// Attach takes over a copy that an earlier run of the node has launched. It returns nil without an error when that has ended meanwhile.
	Attach(ctx context.Context, s *Spec, i state.Instance) (Copy, View, error)
	// End ends a copy that could not be taken over, if it still runs.
	End(ctx context.Context, s *Spec, i state.Instance) error
	// Clear removes what a copy that has ended leaves: taps, sockets, overlays. It never touches disks.
	Clear(ctx context.Context, s *Spec) error
	// Remove deletes the VM's folder and, when asked, its images.
	Remove(ctx context.Context, s *Spec, images bool) error
}
