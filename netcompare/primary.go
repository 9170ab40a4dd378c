package netcompare

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// The comparer's times. QEMU's own defaults (3 s and 3 s) hold a packet that the secondary doesn't confirm for seconds;
// with checkpoints as cheap as quickack routes make them it is better to give up early and take one.
const (
	DefaultCompareTimeout   = 20 * time.Millisecond
	DefaultExpiredScanCycle = 10 * time.Millisecond
	DefaultMaxQueueSize     = 1024
	DefaultConnectTimeout   = 2 * time.Second
)

// Options of Connect. The zero value of each field but SocketDir is its default.
type Options struct {
	// SocketDir is a folder of this QEMU's own in which it can make unix sockets.
	SocketDir string
	// CompareTimeout is how long a packet of the primary waits for its like; then there is a checkpoint. In whole ms.
	CompareTimeout time.Duration
	// ExpiredScanCycle is how often packets are looked at for that.
	ExpiredScanCycle time.Duration
	// MaxQueueSize is the number of packets that may wait per connection; more are dropped. QEMU has one for all
	// comparers of the process, and the last one set is used.
	MaxQueueSize int
	// ConnectTimeout bounds the waiting for all streams to be connected, TLS handshakes included. The guest runs meanwhile.
	ConnectTimeout time.Duration
	// External leaves comparing to a process outside of QEMU, which connects by ComparerNICs.
	External bool
}

func (o Options) withDefaults() (Options, error) {
	set := func(d *time.Duration, def time.Duration, name string) error {
		if *d == 0 {
			*d = def
		}
		if *d < time.Millisecond {
			return fmt.Errorf("%s %v: less than a millisecond", name, *d)
		}
		return nil
	}
	if o.MaxQueueSize == 0 {
		o.MaxQueueSize = DefaultMaxQueueSize
	}
	errs := []error{
		set(&o.CompareTimeout, DefaultCompareTimeout, "compare timeout"),
		set(&o.ExpiredScanCycle, DefaultExpiredScanCycle, "expired scan cycle"),
		set(&o.ConnectTimeout, DefaultConnectTimeout, "connect timeout"),
	}
	if o.MaxQueueSize < 0 {
		errs = append(errs, fmt.Errorf("max queue size %d", o.MaxQueueSize))
	}
	if !filepath.IsAbs(o.SocketDir) {
		errs = append(errs, fmt.Errorf("socket folder %q is not an absolute path", o.SocketDir))
	}
	return o, errors.Join(errs...)
}

// ErrPending is returned by Connect when QEMU still tries a connection of an earlier Connect that has failed. The kernel
// ends that after two minutes at the latest.
var ErrPending = errors.New("an earlier connection is still being tried")

// never is the pause before QEMU connects again by itself, which it shouldn't: a day, in milliseconds.
const never = 24 * 60 * 60 * 1000

// Connect prepares a primary: it connects to the standby that ep describes and adds the mirror, the redirectors and the
// comparer of each NIC. The mirror and the way to the comparer are off, so nothing changes for the guest until Enable. On a
// former secondary the filters go before its rewriters. A *StreamError says that the standby didn't answer in time. On an
// error nothing is left.
//
// QEMU connects in the background: a standby that doesn't answer would otherwise halt the main loop, and with it the guest,
// for up to two minutes. Don't probe the standby's ports: QEMU takes a probe for the primary, and the redirectors of versions
// before 11 let go of a chardev at its first close.
func Connect(ctx context.Context, c *qmp.Client, nics []NIC, ep Endpoint, o Options) error {
	if err := ep.check(nics); err != nil {
		return err
	}
	o, err := o.withDefaults()
	if err != nil {
		return fmt.Errorf("connect to the standby's packet streams: %w", err)
	}
	have, err := look(ctx, c)
	if err != nil {
		return err
	}
	streams, rest := primaryParts(nics, ep, o, have.objects)
	for _, p := range rest {
		// sun_path is 108 bytes, the last of them 0.
		if path := p.socket.Unix; len(path) > 107 {
			return fmt.Errorf("socket path %s is longer than 107 characters", path)
		}
	}
	err = build(ctx, c, streams)
	if err == nil {
		// Connected first: the comparer takes its chardevs to a thread of its own.
		if err = connected(ctx, c, nics, o.ConnectTimeout); err == nil {
			err = build(ctx, c, rest)
		}
		if err != nil {
			err = undoing(ctx, err, func(ctx context.Context) error { return remove(ctx, c, streams) })
		}
	}
	switch qe := (*qmp.Error)(nil); {
	case err == nil:
		return nil
	case errors.As(err, &qe) && strings.Contains(qe.Desc, "duplicate yank instance"):
		return fmt.Errorf("connect to the standby's packet streams: %w: %w", ErrPending, err)
	default:
		return fmt.Errorf("connect to the standby's packet streams: %w", err)
	}
}

// connected waits for the streams. QEMU has no event for a client's connection.
func connected(ctx context.Context, c *qmp.Client, nics []NIC, wait time.Duration) error {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := Streams(ctx, c, nics)
		if !errors.Is(err, ErrStream) {
			return err
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return err
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// primaryParts are the streams to the standby, and all that needs them. It tells a former secondary by the rewriters among
// objects.
func primaryParts(nics []NIC, ep Endpoint, o Options, objects map[string]bool) (streams, rest []part) {
	for _, n := range nics {
		ports := ep.Ports[n.Name]
		streams = append(streams,
			ep.stream(n.mirrorStream(), ports.Mirror, false),
			ep.stream(n.compareStream(), ports.Compare, false),
		)
		filter := func(kind, id string, props map[string]any) part {
			if objects[n.rewriter()] {
				props["insert"], props["position"] = "before", "id="+n.rewriter()
			}
			return n.filter(kind, id, props)
		}
		if o.External {
			rest = append(rest, n.externalParts(o, filter)...)
			continue
		}
		for _, end := range [][2]string{{n.compareIn(), n.compareInEnd()}, {n.compareOut(), n.compareOutEnd()}} {
			path := filepath.Join(o.SocketDir, end[0]+".sock")
			rest = append(rest,
				part{id: end[0], socket: qmp.ChardevSocket{Unix: path, Server: true}},
				part{id: end[1], socket: qmp.ChardevSocket{Unix: path}},
			)
		}
		compare := map[string]any{
			"primary_in":         n.compareInEnd(),
			"secondary_in":       n.compareStream(),
			"outdev":             n.compareOutEnd(),
			"iothread":           n.iothread(),
			"compare_timeout":    o.CompareTimeout.Milliseconds(),
			"expired_scan_cycle": o.ExpiredScanCycle.Milliseconds(),
			"max_queue_size":     o.MaxQueueSize,
		}
		if n.vnetHdr() {
			compare["vnet_hdr_support"] = true
		}
		rest = append(rest,
			filter("filter-mirror", n.mirror(), map[string]any{"queue": "tx", "outdev": n.mirrorStream(), "status": "off"}),
			filter("filter-redirector", n.released(), map[string]any{"queue": "rx", "indev": n.compareOut()}),
			filter("filter-redirector", n.toCompare(), map[string]any{"queue": "rx", "outdev": n.compareIn(), "status": "off"}),
			part{id: n.iothread(), kind: "iothread"},
			part{id: n.comparer(), kind: "colo-compare", props: compare},
		)
	}
	return streams, rest
}

// Enable begins mirroring and comparing. The guest must be stopped (at pre-switchover): from here its output waits for
// the secondary's. It refuses with a *StreamError when a stream to the standby has ended meanwhile. On an error all
// filters are off.
func Enable(ctx context.Context, c *qmp.Client, nics []NIC) error {
	if err := Streams(ctx, c, nics); err != nil {
		return err
	}
	have, err := look(ctx, c)
	if err != nil {
		return err
	}
	for _, n := range nics {
		for _, id := range have.switched(n) {
			if err := setStatus(ctx, c, id, "on"); err != nil {
				return undoing(ctx, err, func(ctx context.Context) error { return Disable(ctx, c, nics) })
			}
		}
	}
	return nil
}

// Disable ends mirroring and comparing: what the guest says goes straight to the tap again. Filters that aren't there are
// no error; it is idempotent.
func Disable(ctx context.Context, c *qmp.Client, nics []NIC) error {
	have, err := look(ctx, c)
	if err != nil {
		return err
	}
	return disable(ctx, c, nics, have)
}

func disable(ctx context.Context, c *qmp.Client, nics []NIC, have inventory) error {
	var errs []error
	for _, n := range nics {
		ids := have.switched(n)
		slices.Reverse(ids)
		for _, id := range ids {
			if have.objects[id] {
				errs = append(errs, setStatus(ctx, c, id, "off"))
			}
		}
	}
	return errors.Join(errs...)
}

func setStatus(ctx context.Context, c *qmp.Client, filter, status string) error {
	if err := c.QOMSet(ctx, "/objects/"+filter, "status", status); err != nil {
		return fmt.Errorf("filter %s %s: %w", filter, status, err)
	}
	return nil
}

// Disconnect takes the comparison away again: the guest goes on alone, also when Connect was never called or not to its
// end. It is idempotent and goes on past errors. When the peer is lost YankChardevs must be yanked first.
func Disconnect(ctx context.Context, c *qmp.Client, nics []NIC) error {
	have, err := look(ctx, c)
	if err != nil {
		return err
	}
	// All NICs speak again before any of the rest, which is only tidying.
	errs := []error{disable(ctx, c, nics, have)}
	streams, rest := primaryParts(nics, Endpoint{}, Options{}, nil)
	_, external := primaryParts(nics, Endpoint{}, Options{External: true}, nil)
	errs = append(errs, have.remove(ctx, c, unique(slices.Concat(streams, rest, external))))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("disconnect the network: %w", err)
	}
	return nil
}
