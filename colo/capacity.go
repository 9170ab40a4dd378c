package colo

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/state"
)

// Limits are what a node gives its VMs' copies together. A zero value is no limit.
type Limits struct {
	Memory Size `json:"memory"` // bytes
	VCPUs  int  `json:"vcpus"`
}

// Capacity is what a node has for VMs, and what is reserved of it.
type Capacity struct {
	Limits   Limits        `json:"limits"`
	Reserved Limits        `json:"reserved"`
	VMs      []Reservation `json:"vms"` // sorted by name
}

// Reservation is what a node keeps for one VM: for a protected one twice its guest's memory, because its secondary holds the guest and COLO's cache of it, and either node may have
// to be the secondary. What QEMU needs for itself is not in it.
type Reservation struct {
	VM     string `json:"vm"`
	Memory Size   `json:"memory"`
	VCPUs  int    `json:"vcpus"`
}

// Errors of a VM that a node can't take.
var (
	// ErrNoRoom is returned when a VM would need more than is left of what a node gives its VMs. It comes with a [*NoRoomError] where the figures are known.
	ErrNoRoom = errors.New("no room on this node")
	// ErrMACTaken is returned for a VM with a MAC address that another VM of the node has: on one LAN neither would be reached.
	ErrMACTaken = errors.New("another VM of this node has this MAC address")
	// ErrImageTaken is returned for a VM with an image that another VM of the node has and may write: only one of them could run.
	ErrImageTaken = errors.New("another VM of this node has this image")
)

// NoRoomError says what a VM needs and what is left.
type NoRoomError struct {
	VM, Node, What     string
	Needs, Has, Limits string // has: reserved for others
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("%s: %v: it needs %s of %s; of the %s that %s gives its VMs %s are reserved for others (see coloctl node show; limits in the node's file)",
		e.VM, ErrNoRoom, e.Needs, e.What, e.Limits, e.Node, e.Has)
}

func (e *NoRoomError) Unwrap() error { return ErrNoRoom }

// reservation is what any node must keep for a VM, which may be protected though its spec doesn't ask for it.
func (s *Spec) reservation(protected bool) Reservation {
	r := Reservation{VM: s.Name, Memory: s.Memory, VCPUs: s.VCPUs}
	if protected || s.Protection.Level != LevelNone {
		r.Memory *= 2
	}
	return r
}

// reserves says whether room is kept for the VM here: a copy runs here, or is to run here when it is needed.
func (m *machine) reserves() bool {
	rec, spec := m.info()
	switch {
	case m.current() != nil || rec.Instance != nil:
		return true
	case rec.Want != WantRunning && rec.Want != WantProtected:
		return false
	}
	// Of several candidates those that are not its nodes now keep no room: they are asked again before it comes.
	return len(spec.Nodes) <= 2 || len(rec.Members) == 0 || slices.Contains(rec.Members, m.n.cfg.Name)
}

// Capacity tells what this node has for VMs, and what is reserved of it.
func (n *Node) Capacity() Capacity {
	c := Capacity{Limits: n.cfg.Limits, VMs: []Reservation{}}
	for _, m := range n.all() {
		if !m.reserves() {
			continue
		}
		rec, spec := m.info()
		r := spec.reservation(rec.Want == WantProtected || len(rec.Members) > 1 || rec.Role == state.RoleSecondary)
		c.Reserved.Memory += r.Memory
		c.Reserved.VCPUs += r.VCPUs
		c.VMs = append(c.VMs, r)
	}
	slices.SortFunc(c.VMs, func(a, b Reservation) int { return strings.Compare(a.VM, b.VM) })
	return c
}

// all returns the machines of all VMs.
func (n *Node) all() []*machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*machine, 0, len(n.machines))
	for _, m := range n.machines {
		out = append(out, m)
	}
	return out
}

// admit refuses a VM that there is no room for. One that has its room already is never refused: it must come back after an outage.
func (n *Node) admit(s *Spec, protected bool) error {
	if err := n.macsFree(s); err != nil {
		return err
	}
	c := n.Capacity()
	if slices.ContainsFunc(c.VMs, func(r Reservation) bool { return r.VM == s.Name }) {
		return nil
	}
	return n.room(s, protected, c.Reserved)
}

// room refuses a VM that needs more than is left beside what is reserved. With nothing reserved it tells whether the VM could ever run here.
func (n *Node) room(s *Spec, protected bool, reserved Limits) error {
	r := s.reservation(protected)
	if l := n.cfg.Limits.Memory; l > 0 && r.Memory > l-reserved.Memory {
		needs := r.Memory.String()
		if r.Memory != s.Memory {
			needs += " (twice its guest's, as a secondary does)"
		}
		return &NoRoomError{VM: s.Name, Node: n.cfg.Name, What: "memory", Needs: needs, Has: reserved.Memory.String(), Limits: l.String()}
	}
	if l := n.cfg.Limits.VCPUs; l > 0 && reserved.VCPUs+r.VCPUs > l {
		return &NoRoomError{VM: s.Name, Node: n.cfg.Name, What: "virtual CPUs", Needs: fmt.Sprint(r.VCPUs), Has: fmt.Sprint(reserved.VCPUs), Limits: fmt.Sprint(l)}
	}
	return nil
}

// macsFree refuses a VM with an address of another one's.
func (n *Node) macsFree(s *Spec) error {
	own := map[string]string{}
	for _, nic := range s.NICs {
		if hw, err := net.ParseMAC(nic.MAC); err == nil {
			own[hw.String()] = nic.Name
		}
	}
	for _, m := range n.all() {
		if m.name == s.Name {
			continue
		}
		_, spec := m.info()
		for _, nic := range spec.NICs {
			hw, err := net.ParseMAC(nic.MAC)
			if err != nil {
				continue
			}
			if name, taken := own[hw.String()]; taken {
				return fmt.Errorf("%s: %w: %s of its NIC %s is that of %s's NIC %s on %s", s.Name, ErrMACTaken, hw, name, spec.Name, nic.Name, n.cfg.Name)
			}
		}
	}
	return nil
}

// imagesFree refuses a VM with an image of another one's that either of them may write. Files are compared by their paths, and where they are there by what they are.
func (n *Node) imagesFree(s *Spec) error {
	for _, m := range n.all() {
		if m.name == s.Name {
			continue
		}
		_, other := m.info()
		for _, d := range s.Disks {
			for _, o := range other.Disks {
				if (!d.ReadOnly || !o.ReadOnly) && sameFile(d.path(n.cfg.StorageDir), o.path(n.cfg.StorageDir)) {
					return fmt.Errorf("%s: %w: %s of its disk %s is that of %s's disk %s on %s", s.Name, ErrImageTaken, d.File, d.Name, other.Name, o.Name, n.cfg.Name)
				}
			}
		}
	}
	return nil
}

func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	two, err := os.Stat(b)
	return err == nil && os.SameFile(one, two)
}
