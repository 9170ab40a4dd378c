package netcompare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/qmp"
)

var (
	// ErrEndpoint is matched by errors about how an Endpoint is described.
	ErrEndpoint = errors.New("bad endpoint")
	// ErrStream is matched by a *StreamError.
	ErrStream = errors.New("packet stream is down")
)

// PortPair are the ports of one NIC on the standby.
type PortPair struct {
	Mirror  int // the primary sends what came from the LAN
	Compare int // the secondary sends what its guest says
}

// Endpoint is where the standby listens, the same value for Listen there and Connect on the primary.
type Endpoint struct {
	Host     string              // IP address of the standby's link
	Ports    map[string]PortPair // by NIC name
	MPTCP    bool
	TLSCreds string // id of a tls-creds object that the caller has made in the QEMU in question; "" = none
}

// StreamError says which stream between the nodes is down. Packet streams don't heal: nobody connects again, what was on
// the way is lost, and the filters of QEMU before 11 have let go of the chardev. The pair must be made anew (Disconnect and
// a new standby).
type StreamError struct {
	NIC     string
	Chardev string
	State   string // in QEMU's words
}

func (e *StreamError) Error() string {
	return fmt.Sprintf("packet stream %s of NIC %s is down: %s", e.Chardev, e.NIC, e.State)
}

// Is makes it match ErrStream.
func (e *StreamError) Is(target error) bool { return target == ErrStream }

// check looks at ep and nics; after it addr can't fail.
func (ep Endpoint) check(nics []NIC) error {
	errs := []error{Check(nics)}
	ip, err := netip.ParseAddr(ep.Host)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("%w: %q is not an IP address", ErrEndpoint, ep.Host))
	case ip.IsUnspecified():
		// Whoever connects can hear and forge the guest's packets: never on all interfaces.
		errs = append(errs, fmt.Errorf("%w: %s is every interface; give the address of a link", ErrEndpoint, ep.Host))
	}
	used := map[int]string{}
	for _, n := range nics {
		pair, ok := ep.Ports[n.Name]
		if !ok {
			errs = append(errs, fmt.Errorf("%w: no ports for NIC %s", ErrEndpoint, n.Name))
			continue
		}
		for _, port := range []int{pair.Mirror, pair.Compare} {
			if port < 1 || port > 65535 {
				errs = append(errs, fmt.Errorf("%w: %d is not a port (NIC %s)", ErrEndpoint, port, n.Name))
			} else if other, twice := used[port]; twice {
				errs = append(errs, fmt.Errorf("%w: port %d is used twice (NICs %s and %s)", ErrEndpoint, port, other, n.Name))
			}
			used[port] = n.Name
		}
	}
	return errors.Join(errs...)
}

// stream is one end of a stream between the nodes. Without nodelay small packets would wait for the peer's ACK.
func (ep Endpoint) stream(id string, port int, server bool) part {
	s := qmp.ChardevSocket{
		Inet:     &qmp.InetAddr{Host: ep.Host, Port: port, MPTCP: ep.MPTCP},
		Server:   server,
		NoDelay:  true,
		TLSCreds: ep.TLSCreds,
	}
	if !server {
		s.ReconnectMS = never // makes QEMU connect in the background
	}
	return part{id: id, socket: s}
}

// YankChardevs are the ids of the chardevs whose connection leads to the peer. When the peer is lost they must be yanked
// (qmp.Client.Yank, on a second QMP socket) before Disconnect, or a peer that is only frozen may hang QEMU's main loop.
func YankChardevs(nics []NIC) []string {
	var ids []string
	for _, n := range nics {
		ids = append(ids, n.mirrorStream(), n.compareStream())
	}
	return ids
}

// Streams checks that the streams to the peer are connected, on either node; a *StreamError names the first that isn't.
func Streams(ctx context.Context, c *qmp.Client, nics []NIC) error {
	chardevs, err := c.QueryChardev(ctx)
	if err != nil {
		return fmt.Errorf("list chardevs: %w", err)
	}
	for _, n := range nics {
		for _, id := range []string{n.mirrorStream(), n.compareStream()} {
			i := slices.IndexFunc(chardevs, func(ch qmp.Chardev) bool { return ch.Label == id })
			switch {
			case i < 0:
				return &StreamError{NIC: n.Name, Chardev: id, State: "not there"}
			case strings.HasPrefix(chardevs[i].Filename, "disconnected:"):
				return &StreamError{NIC: n.Name, Chardev: id, State: chardevs[i].Filename}
			}
		}
	}
	return nil
}
