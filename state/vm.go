package state

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"
)

// Role is what this node's copy of a VM is. The zero value: none.
type Role string

// Roles of a copy.
const (
	RoleNone      Role = ""
	RolePrimary   Role = "primary"
	RoleSecondary Role = "secondary"
)

// VM is what the node remembers of one VM.
type VM struct {
	Name string `json:"name"`
	// ID is made with the VM and never changes: it tells a VM from a later one of the same name. Create sets it if it is empty.
	ID   string `json:"id"`
	Spec []byte `json:"spec,omitempty"` // as the owner wrote it
	Role Role   `json:"role,omitempty"`
	// Phase is the state of the VM's state machine; this package doesn't interpret it.
	Phase string `json:"phase"`
	// Reason is why the VM is in this phase, for people.
	Reason string `json:"reason,omitempty"`
	// Want is what the VM's owner has asked for last; this package doesn't interpret it.
	Want string `json:"want,omitempty"`
	// Generation and Members are the last that this node knows to be valid: agreed with the peer or given by the arbiter.
	Generation uint64   `json:"generation"`
	Members    []string `json:"members,omitempty"`
	Peer       string   `json:"peer,omitempty"`
	// Disks are the local halves, by the disk's name.
	Disks map[string]Disk `json:"disks,omitempty"`
	// Offered names a node whose copy the arbiter may have been made to count, without an answer having come: Members may be one too few.
	Offered string `json:"offered,omitempty"`
	// Vouched is the generation that a person's word has made without the arbiter, as long as that is still to be told; otherwise 0.
	Vouched uint64 `json:"vouched,omitempty"`
	// Base is where the dirty bitmaps of the living QEMU begin; nil if there are none that help.
	Base *Base `json:"base,omitempty"`
	// Resync is the one under way to the peer's disks, or the one that was interrupted last; nil after one that has ended well.
	Resync *Resync `json:"resync,omitempty"`
	// Target is the id of the resync that has last written to the disks here. It is empty when anything else has written to them since.
	Target string `json:"target,omitempty"`
	// Verify is the last comparison of both halves that has ended; nil before the first.
	Verify *Verify `json:"verify,omitempty"`
	// Instance is the QEMU this node started for the VM; nil if there is none.
	Instance *Instance `json:"instance,omitempty"`
	// Updated is set by the store at each change.
	Updated time.Time `json:"updated"`
}

// Disk is the local half of a disk.
type Disk struct {
	// Generation is the last one in which this half was current. It never exceeds the VM's.
	Generation uint64 `json:"generation"`
	// InSync says that the half is known to hold all that any client may have seen in that generation. It must be made
	// false, durably, before anything may make it untrue.
	InSync bool `json:"in_sync"`
	// Written says that a copy of this node's own has written to the half since it was last made equal to another's.
	Written bool `json:"written,omitempty"`
	// Bitmap names the dirty bitmap in the living QEMU that covers everything the peer's half may lack; empty if there is none.
	Bitmap string `json:"bitmap,omitempty"`
	// Offline is why the half is out of service; empty while it isn't. Nothing reads or writes it until a person takes it back.
	Offline string `json:"offline,omitempty"`
	// Behind says that a running copy has let go of this half and gone on through the peer's, which has all that this one lacks since then. It is
	// false again when the half is written by a resync, or when a person takes it as it is.
	Behind bool `json:"behind,omitempty"`
	// Size in bytes, as last seen.
	Size int64 `json:"size,omitempty"`
}

// Resync is how far the resync of a peer's disks has come. It is of use only while the QEMU lives that it began with: that has the record of
// what differs.
type Resync struct {
	ID   string `json:"id"` // the peer keeps it as its Target
	Peer string `json:"peer"`
	Mode string `json:"mode"`
	// Compared is, by disk, the offset up to which both halves were compared: what differs before it is on QEMU's record.
	Compared map[string]int64 `json:"compared,omitempty"`
}

// Verify is what a comparison of both halves of a VM's disks has found.
type Verify struct {
	Begun    time.Time `json:"begun"`
	Ended    time.Time `json:"ended"`
	Compared int64     `json:"compared"` // bytes
	// Differed are bytes that are not equal though nothing wrote to them; Busy those that were written each time they were looked at.
	Differed int64  `json:"differed,omitempty"`
	Busy     int64  `json:"busy,omitempty"`
	Repaired bool   `json:"repaired,omitempty"` // what differed was copied again
	Error    string `json:"error,omitempty"`    // why it ended early
}

// Base says whose halves the dirty bitmaps are about: those of Peer, which were equal at Generation.
type Base struct {
	Peer       string `json:"peer"`
	Generation uint64 `json:"generation"`
}

// Instance is enough to find a QEMU again after a restart of the daemon, and to be sure that it is the same one.
type Instance struct {
	PID int `json:"pid"`
	// StartTicks (field 22 of /proc/PID/stat) and BootID tell the process from a later one with the same PID.
	StartTicks uint64         `json:"start_ticks"`
	BootID     string         `json:"boot_id,omitempty"`
	Dir        string         `json:"dir"`
	QMP        string         `json:"qmp"`
	Rescue     string         `json:"rescue"` // the second QMP socket, kept free for out-of-band commands
	Argv       []string       `json:"argv,omitempty"`
	Ports      map[string]int `json:"ports,omitempty"`
}

// Clone returns a copy that shares nothing with v.
func (v VM) Clone() VM {
	v.Spec = slices.Clone(v.Spec)
	v.Members = slices.Clone(v.Members)
	v.Disks = maps.Clone(v.Disks)
	if v.Base != nil {
		b := *v.Base
		v.Base = &b
	}
	if v.Resync != nil {
		r := *v.Resync
		r.Compared = maps.Clone(r.Compared)
		v.Resync = &r
	}
	if v.Verify != nil {
		r := *v.Verify
		v.Verify = &r
	}
	if v.Instance != nil {
		i := *v.Instance
		i.Argv = slices.Clone(i.Argv)
		i.Ports = maps.Clone(i.Ports)
		v.Instance = &i
	}
	return v
}

// nameRule keeps names usable as a file name, a QEMU id and a network device's suffix.
var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func (v *VM) validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: VM %q: %s", ErrInvalid, v.Name, fmt.Sprintf(format, a...))
	}
	if !nameRule.MatchString(v.Name) {
		return bad("name must match %s", nameRule)
	}
	switch v.Role {
	case RoleNone, RolePrimary, RoleSecondary:
	default:
		return bad("unknown role %q", v.Role)
	}
	if slices.Contains(v.Members, "") {
		return bad("a member without name")
	}
	if v.Generation == 0 && len(v.Members) > 0 {
		return bad("members %q in generation 0", v.Members)
	}
	for name, d := range v.Disks {
		if name == "" {
			return bad("a disk without name")
		}
		if d.Generation > v.Generation {
			return bad("disk %s has generation %d, the VM %d", name, d.Generation, v.Generation)
		}
	}
	if v.Instance != nil && v.Instance.PID <= 0 {
		return bad("instance with PID %d", v.Instance.PID)
	}
	return nil
}

// follows checks what may not change from one record to the next.
func (v *VM) follows(old *VM) error {
	if v.Name != old.Name || v.ID != old.ID {
		return fmt.Errorf("%w: VM %q (%s) may not become %q (%s)", ErrInvalid, old.Name, old.ID, v.Name, v.ID)
	}
	if v.Generation < old.Generation {
		return fmt.Errorf("%w: VM %s from %d to %d", ErrGenerationFell, v.Name, old.Generation, v.Generation)
	}
	for name, d := range v.Disks {
		if was, ok := old.Disks[name]; ok && d.Generation < was.Generation {
			return fmt.Errorf("%w: VM %s disk %s from %d to %d", ErrGenerationFell, v.Name, name, was.Generation, d.Generation)
		}
	}
	return nil
}

// Create stores a new VM; [ErrExists] if there is one of that name.
func (tx *Tx) Create(v VM) error {
	if err := v.validate(); err != nil {
		return err
	}
	if tx.has(bucketVMs, v.Name) {
		return fmt.Errorf("VM %s %w", v.Name, ErrExists)
	}
	if v.ID == "" {
		v.ID = newID()
	}
	v.Updated = now()
	return tx.put(bucketVMs, v.Name, &v, nil)
}

// Get returns a VM; [ErrNotFound] if there is none of that name.
func (tx *Tx) Get(name string) (VM, error) {
	var v VM
	if _, err := tx.get(bucketVMs, name, &v); err != nil {
		return VM{}, fmt.Errorf("VM %s: %w", name, err)
	}
	return v, nil
}

// List returns all VMs, sorted by name.
func (tx *Tx) List() ([]VM, error) {
	var out []VM
	err := each(tx, bucketVMs, func(_ string, v VM) error {
		out = append(out, v)
		return nil
	})
	return out, err
}

// Update gives change the present record and stores what it leaves, unless change returns an error or changed nothing. Name, ID and
// Updated aren't the caller's to change. Generations may only rise ([ErrGenerationFell]).
func (tx *Tx) Update(name string, change func(*VM) error) error {
	var old VM
	raw, err := tx.get(bucketVMs, name, &old)
	if err != nil {
		return fmt.Errorf("VM %s: %w", name, err)
	}
	next := old.Clone()
	if err := change(&next); err != nil {
		return err
	}
	if err := next.validate(); err != nil {
		return err
	}
	if err := next.follows(&old); err != nil {
		return err
	}
	next.Updated = old.Updated
	if same, err := equalJSON(&old, &next); err != nil || same {
		return err
	}
	next.Updated = now()
	return tx.put(bucketVMs, name, &next, &previous{raw: raw, decoded: &old})
}

// Delete removes a VM and gives its ports back. Its history stays. [ErrNotFound] if there is none.
func (tx *Tx) Delete(name string) error {
	if !tx.has(bucketVMs, name) {
		return fmt.Errorf("VM %s: %w", name, ErrNotFound)
	}
	if err := tx.ReleasePorts(name); err != nil {
		return err
	}
	return tx.delete(bucketVMs, name)
}

// Create is [Tx.Create] on its own.
func (s *Store) Create(v VM) error { return s.Do(func(tx *Tx) error { return tx.Create(v) }) }

// Get is [Tx.Get] on its own.
func (s *Store) Get(name string) (VM, error) {
	return read(s, func(tx *Tx) (VM, error) { return tx.Get(name) })
}

// List is [Tx.List] on its own.
func (s *Store) List() ([]VM, error) { return read(s, (*Tx).List) }

// Update is [Tx.Update] on its own.
func (s *Store) Update(name string, change func(*VM) error) error {
	return s.Do(func(tx *Tx) error { return tx.Update(name, change) })
}

// Delete is [Tx.Delete] on its own.
func (s *Store) Delete(name string) error { return s.Do(func(tx *Tx) error { return tx.Delete(name) }) }
