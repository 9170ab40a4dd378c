package state

import (
	"errors"
	"fmt"
)

// Errors that Open returns, wrapped in [*OpenError]. Some come later too, where said.
var (
	// ErrNoFolder is returned when the folder of the file doesn't exist. It isn't made, because a state folder that is
	// missing is more often one that isn't mounted.
	ErrNoFolder = errors.New("state folder doesn't exist")

	// ErrNotWritable is returned when the folder or the file can't be written by this user.
	ErrNotWritable = errors.New("state not writable")

	// ErrLocked is returned when another process (or another Store of this one) has the file open.
	ErrLocked = errors.New("state file in use")

	// ErrCorrupt is returned when the file isn't what this package wrote. It was not changed. Reads return it too,
	// in a [*CorruptError], when damage appears later.
	ErrCorrupt = errors.New("state file damaged")

	// ErrNewerSchema is returned, in a [*SchemaError], when a newer version wrote the file.
	ErrNewerSchema = errors.New("state file written by a newer version")

	// ErrOtherNode is returned when the file belongs to a node with another name than Options.Node.
	ErrOtherNode = errors.New("state file belongs to another node")

	// ErrFull is returned by Open and by every write when there is no room on the disk. The write had no effect; the store
	// can be used on.
	ErrFull = errors.New("no room for the state file")
)

// Errors of a Store that is open.
var (
	// ErrClosed is returned by all methods after Close.
	ErrClosed = errors.New("state closed")

	// ErrNotFound is returned when the VM or intent named isn't there.
	ErrNotFound = errors.New("not found")

	// ErrExists is returned by Create when the VM is there already.
	ErrExists = errors.New("already exists")

	// ErrInvalid is returned when a record breaks a rule of its type. Nothing was written.
	ErrInvalid = errors.New("invalid record")

	// ErrGenerationFell is returned when a VM's or a disk's generation would become lower. Generations only rise.
	ErrGenerationFell = errors.New("generation may not fall")

	// ErrIntentOpen is returned, in an [*IntentOpenError], by Begin while another plan of the VM is open.
	ErrIntentOpen = errors.New("another plan is open")

	// ErrIntentEnded is returned when a step of an ended intent is reported, or it is ended again with another outcome.
	ErrIntentEnded = errors.New("plan has ended already")

	// ErrNoPorts is returned when the node's range has no free port left.
	ErrNoPorts = errors.New("no free port in the range")

	// ErrReadOnly is returned for a change inside Read.
	ErrReadOnly = errors.New("change inside a read")
)

// OpenError says which file could not be opened and why.
type OpenError struct {
	Path string
	Err  error  // one of the sentinels, possibly with its cause
	Hint string // what to do
}

func (e *OpenError) Error() string {
	s := fmt.Sprintf("open state %s: %v", e.Path, e.Err)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns Err.
func (e *OpenError) Unwrap() error { return e.Err }

// LockedError says who holds the file. It is an [ErrLocked].
type LockedError struct {
	Path string
	PID  int    // 0 if it can't be found out
	Name string // the process's name, may be empty
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%v: %s", ErrLocked, e.Path)
	}
	return fmt.Sprintf("%v by process %d (%s): %s", ErrLocked, e.PID, e.Name, e.Path)
}

// Is makes errors.Is(e, ErrLocked) true.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// CorruptError says where the damage is. It is an [ErrCorrupt].
type CorruptError struct {
	Path   string
	Bucket string // empty if the damage is in the file's structure
	Key    string
	Detail error
}

func (e *CorruptError) Error() string {
	where := e.Path
	if e.Bucket != "" {
		where = fmt.Sprintf("%s, %s/%s", e.Path, e.Bucket, e.Key)
	}
	return fmt.Sprintf("%v: %s: %v", ErrCorrupt, where, e.Detail)
}

// Is makes errors.Is(e, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns the detail.
func (e *CorruptError) Unwrap() error { return e.Detail }

// SchemaError says which schema the file has. It is an [ErrNewerSchema].
type SchemaError struct {
	Path            string
	Found, Supports Version
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("%v: %s has schema %s, this version reads up to %d.x", ErrNewerSchema, e.Path, e.Found, e.Supports.Major)
}

// Is makes errors.Is(e, ErrNewerSchema) true.
func (e *SchemaError) Is(target error) bool { return target == ErrNewerSchema }

// IntentOpenError names the plan that is in the way. It is an [ErrIntentOpen].
type IntentOpenError struct{ Open Intent }

func (e *IntentOpenError) Error() string {
	return fmt.Sprintf("%v for VM %s: %s (intent %d)", ErrIntentOpen, e.Open.VM, e.Open.Plan, e.Open.ID)
}

// Is makes errors.Is(e, ErrIntentOpen) true.
func (e *IntentOpenError) Is(target error) bool { return target == ErrIntentOpen }
