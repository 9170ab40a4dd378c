package netcompare

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// Connection is an open TCP connection of a process, as the kernel tells it.
type Connection struct {
	// Local are this host's addresses on the paths that carry it: one, or with MPTCP that of each path that is open. A path on which the kernel has sent the
	// same again and again in vain is left out.
	Local []netip.Addr
	MPTCP bool
}

// Numbers of linux/sock_diag.h and inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	tcpEstablished   = 1
	tcpListen        = 10
	diagInfo         = 2  // attributes of a socket: struct tcp_info
	diagULP          = 19 // what lies above it, by its name; told only with diagInfo
	diagSize         = 72 // struct inet_diag_msg
	idSize           = 48 // struct inet_diag_sockid
	backoffOffset    = 4  // in struct tcp_info: how often in a row the time to send again was doubled
	mostBackoff      = 1
)

// Connections lists the established connections of a process between two hosts. It sees those of an own user only, unless it may change the network.
func (h Host) Connections(ctx context.Context, pid int) ([]Connection, error) {
	inodes, err := socketsOf(pid)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found := map[uint32]Connection{}
	err = netns.Do(h.Netns, func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all, err := sockets(family, tcpEstablished)
			if err != nil {
				return err
			}
			for _, s := range all {
				if !inodes[s.inode] || s.local.IsLoopback() {
					continue
				}
				c := found[s.inode]
				c.MPTCP = c.MPTCP || s.path
				if s.backoff <= mostBackoff && !slices.Contains(c.Local, s.local) {
					c.Local = append(c.Local, s.local)
				}
				found[s.inode] = c
			}
		}
		return nil
	})
	if err != nil {
		return nil, &HostError{Op: "list connections of", Link: fmt.Sprintf("process %d", pid), Netns: h.Netns, Err: err}
	}
	return slices.Collect(maps.Values(found)), nil
}

// Listeners lists the TCP addresses on which a process takes connections from other hosts.
func (h Host) Listeners(ctx context.Context, pid int) (addrs []netip.AddrPort, err error) {
	inodes, err := socketsOf(pid)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = netns.Do(h.Netns, func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all, err := sockets(family, tcpListen)
			if err != nil {
				return err
			}
			for _, s := range all {
				if a := netip.AddrPortFrom(s.local, s.port); inodes[s.inode] && !s.local.IsLoopback() && !slices.Contains(addrs, a) {
					addrs = append(addrs, a)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, &HostError{Op: "list listening sockets of", Link: fmt.Sprintf("process %d", pid), Netns: h.Netns, Err: err}
	}
	return addrs, nil
}

// AbandonPaths ends the paths of MPTCP connections that begin at an address of this host whose link is lost, where the connection has another one: what
// was sent there in vain goes by that at once. Without it the kernel needs several seconds to give a path up, because its patience doubles with every try.
// A kernel that can't (CONFIG_INET_DIAG_DESTROY) is left to find out by itself.
func (h Host) AbandonPaths(ctx context.Context, lost netip.Addr) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	family := uint8(unix.AF_INET)
	if lost.Is6() {
		family = unix.AF_INET6
	}
	err := netns.Do(h.Netns, func() error {
		all, err := sockets(family, tcpEstablished)
		if err != nil {
			return err
		}
		for _, s := range all {
			others := slices.ContainsFunc(all, func(o socket) bool { return o.path && o.inode == s.inode && o.local != lost })
			if !s.path || s.local != lost || s.inode == 0 || !others {
				continue
			}
			switch err := s.destroy(family); {
			case errors.Is(err, unix.EOPNOTSUPP):
				return nil
			case errors.Is(err, unix.ENOENT): // it has just ended
			case err != nil:
				return err
			}
		}
		return nil
	})
	if err != nil {
		return &HostError{Op: "abandon paths by", Link: lost.String(), Netns: h.Netns, Err: err}
	}
	return nil
}

// socketsOf are the inode numbers of a process's sockets.
func socketsOf(pid int) (map[uint32]bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[uint32]bool{}
	for _, f := range files {
		var inode uint32
		if to, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil { // closed meanwhile
			if _, err := fmt.Sscanf(to, "socket:[%d]", &inode); err == nil {
				out[inode] = true
			}
		}
	}
	return out, nil
}

// socket is one of TCP.
type socket struct {
	local   netip.Addr
	port    uint16
	inode   uint32 // of the file that it belongs to; all paths of an MPTCP connection have the same
	path    bool   // of an MPTCP connection
	backoff uint8
	id      []byte // struct inet_diag_sockid
}

// sockets are all that are in a state.
func sockets(family, state uint8) ([]socket, error) {
	req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	req.AddRawData(diagRequest(family, state, make([]byte, idSize)))
	msgs, err := req.Execute(unix.NETLINK_INET_DIAG, sockDiagByFamily)
	if err != nil {
		return nil, err
	}
	out := make([]socket, len(msgs))
	for i, m := range msgs {
		if len(m) < diagSize {
			return nil, fmt.Errorf("the kernel's answer has %d bytes", len(m))
		}
		s := socket{local: netip.AddrFrom4([4]byte(m[8:12])), port: binary.BigEndian.Uint16(m[4:]), inode: binary.NativeEndian.Uint32(m[68:]), id: m[4 : 4+idSize]}
		if family == unix.AF_INET6 {
			s.local = netip.AddrFrom16([16]byte(m[8:24])).Unmap()
		}
		attrs, err := nl.ParseRouteAttr(m[diagSize:])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			switch kind := a.Attr.Type &^ unix.NLA_F_NESTED; {
			case kind == diagULP:
				s.path = bytes.Contains(a.Value, []byte("mptcp\x00"))
			case kind == diagInfo && len(a.Value) > backoffOffset:
				s.backoff = a.Value[backoffOffset]
			}
		}
		out[i] = s
	}
	return out, nil
}

// diagRequest is a struct inet_diag_req_v2.
func diagRequest(family, state uint8, id []byte) []byte {
	head := []byte{family, unix.IPPROTO_TCP, 1 << (diagInfo - 1), 0}
	return append(binary.NativeEndian.AppendUint32(head, 1<<state), id...)
}

func (s *socket) destroy(family uint8) error {
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddRawData(diagRequest(family, tcpEstablished, s.id))
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
