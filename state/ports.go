package state

import (
	"errors"
	"fmt"
	"maps"
)

// PortRange is the node's range, both ends included.
type PortRange struct{ First, Last int }

// DefaultPorts is used if Options.Ports is zero: below Linux's ephemeral range, so that no outgoing connection takes one.
var DefaultPorts = PortRange{First: 19000, Last: 19999}

func (r PortRange) validate() error {
	if r.First < 1 || r.Last > 65535 || r.First > r.Last {
		return fmt.Errorf("%w: port range %d-%d", ErrInvalid, r.First, r.Last)
	}
	return nil
}

type portRecord struct {
	Ports map[string]int `json:"ports"`
}

// Ports returns a port for each use, allocating what isn't allocated yet: the same VM and use get the same port for as long as the VM exists, also
// when the node's range was changed since. All uses are given or none. With usable a new port is offered to the caller first, who may refuse
// it, for instance because another program listens there; it runs inside the transaction and must be quick.
// [ErrNoPorts] if the range is used up.
func (tx *Tx) Ports(vm string, uses []string, usable func(port int) bool) (map[string]int, error) {
	return tx.PortsIn(tx.s.opt.Ports, vm, uses, usable)
}

// PortsIn is Ports with another range than the store's.
func (tx *Tx) PortsIn(within PortRange, vm string, uses []string, usable func(port int) bool) (map[string]int, error) {
	if err := within.validate(); err != nil {
		return nil, err
	}
	if vm == "" {
		return nil, fmt.Errorf("%w: ports for a VM without name", ErrInvalid)
	}
	taken, err := tx.takenPorts()
	if err != nil {
		return nil, err
	}
	var rec portRecord
	var prev *previous
	raw, err := tx.get(bucketPorts, vm, &rec)
	switch {
	case err == nil:
		prev = &previous{raw: raw, decoded: &portRecord{Ports: maps.Clone(rec.Ports)}}
	case !errors.Is(err, ErrNotFound):
		return nil, err
	}
	if rec.Ports == nil {
		rec.Ports = map[string]int{}
	}
	out := make(map[string]int, len(uses))
	fresh := false
	port := within.First
	for _, use := range uses {
		if use == "" {
			return nil, fmt.Errorf("%w: port of VM %s without a use", ErrInvalid, vm)
		}
		if p, ok := rec.Ports[use]; ok {
			out[use] = p
			continue
		}
		for ; port <= within.Last; port++ {
			if !taken[port] && (usable == nil || usable(port)) {
				break
			}
		}
		if port > within.Last {
			return nil, fmt.Errorf("%w: VM %s needs one for %s in %d-%d", ErrNoPorts, vm, use, within.First, within.Last)
		}
		taken[port], fresh = true, true
		rec.Ports[use], out[use] = port, port
	}
	if !fresh {
		return out, nil
	}
	return out, tx.put(bucketPorts, vm, &rec, prev)
}

func (tx *Tx) takenPorts() (map[int]bool, error) {
	taken := map[int]bool{}
	err := each(tx, bucketPorts, func(_ string, r portRecord) error {
		for _, p := range r.Ports {
			taken[p] = true
		}
		return nil
	})
	return taken, err
}

// ReleasePorts gives back the ports of a VM: those of the named uses, or all if none is named. It is no error if there are none.
func (tx *Tx) ReleasePorts(vm string, uses ...string) error {
	var rec portRecord
	raw, err := tx.get(bucketPorts, vm, &rec)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	old := portRecord{Ports: maps.Clone(rec.Ports)}
	for _, u := range uses {
		delete(rec.Ports, u)
	}
	if len(uses) == 0 || len(rec.Ports) == 0 {
		return tx.delete(bucketPorts, vm)
	}
	return tx.put(bucketPorts, vm, &rec, &previous{raw: raw, decoded: &old})
}

// Ports is [Tx.Ports] on its own.
func (s *Store) Ports(vm string, uses []string, usable func(port int) bool) (out map[string]int, err error) {
	err = s.Do(func(tx *Tx) error { out, err = tx.Ports(vm, uses, usable); return err })
	return out, err
}

// PortsIn is [Tx.PortsIn] on its own.
func (s *Store) PortsIn(within PortRange, vm string, uses []string, usable func(port int) bool) (out map[string]int, err error) {
	err = s.Do(func(tx *Tx) error { out, err = tx.PortsIn(within, vm, uses, usable); return err })
	return out, err
}

// ReleasePorts is [Tx.ReleasePorts] on its own.
func (s *Store) ReleasePorts(vm string, uses ...string) error {
	return s.Do(func(tx *Tx) error { return tx.ReleasePorts(vm, uses...) })
}
