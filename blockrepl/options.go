package blockrepl

import (
	"context"
	"net"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// Mode is how the peer's disks are made equal.
type Mode string

const (
	// Bitmap copies what was written since the peer was lost. It needs the
	// QEMU that was alive then, and the very disks that the peer had.
	Bitmap Mode = "bitmap"

	// Checksum copies what differs: both sides hash their disks block by block
	// first, while the guest runs. It needs nothing but disks of the same size.
	Checksum Mode = "checksum"

	// Full copies everything. Zeroes don't travel.
	Full Mode = "full"
)

// Defaults of Options.
const (
	DefaultProbeTimeout = 2 * time.Second
	DefaultOpenTimeout  = 2 * time.Second
	DefaultStallAfter   = 10 * time.Second
	DefaultPoll         = 250 * time.Millisecond
	DefaultMaxPause     = time.Second
)

// Options of a Mirror. Zero values are replaced by defaults.
type Options struct {
	Mode Mode // Full if empty

	// Speed limits Sync, in bytes a second for each disk; 0 is no limit.
	// Switch has none, because the guest waits for it.
	Speed int64

	// Scan is needed in mode Checksum.
	Scan *Scan

	// MaxPause bounds how long the guest may have to stand still for what it
	// wrote during the last pass that ran beside it. While more is left than
	// was lately copied in that time, Sync makes another pass, a few times.
	MaxPause time.Duration

	// OnProgress, if set, is called with each disk's progress, never twice at a
	// time; it must be quick and must not call Abort.
	OnProgress func(Progress)

	// ProbeDial reaches the peer as this QEMU does, from its network namespace.
	ProbeDial func(ctx context.Context, network, addr string) (net.Conn, error)

	// ProbeTimeout bounds the question whether the peer's export is alive.
	ProbeTimeout time.Duration

	// OpenTimeout bounds how long this QEMU, guest included, stands still if
	// the peer freezes just after that question. It is rounded up to seconds.
	OpenTimeout time.Duration

	// StallAfter is how long a resync may make no progress. With Speed it is
	// prolonged by the time that 16 MiB take.
	StallAfter time.Duration

	// Poll is how often progress is looked at.
	Poll time.Duration

	// Rescue is a second QMP connection to the same QEMU, for Abort's yank.
	// Without it the first one is used, out of band too.
	Rescue *qmp.Client
}

func (o *Options) setDefaults(c *qmp.Client) {
	if o.Mode == "" {
		o.Mode = Full
	}
	if o.ProbeDial == nil {
		o.ProbeDial = new(net.Dialer).DialContext
	}
	if o.Rescue == nil {
		o.Rescue = c
	}
	for v, d := range map[*time.Duration]time.Duration{
		&o.ProbeTimeout: DefaultProbeTimeout, &o.OpenTimeout: DefaultOpenTimeout,
		&o.StallAfter: DefaultStallAfter, &o.Poll: DefaultPoll, &o.MaxPause: DefaultMaxPause,
	} {
		if *v <= 0 {
			*v = d
		}
	}
}
