package witness

import (
	"errors"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/internal/recordfile"
)

// Errors of a witness that was asked and has answered.
var (
	// ErrSameHost is returned to a node on the witness's own host.
	ErrSameHost = errors.New("the witness runs on this node's host and would die with it (run it on a third machine)")

	// ErrForbidden is returned to a caller whose certificate isn't for what it asks: claims are for nodes only.
	ErrForbidden = errors.New("refused by the witness")

	// ErrPaired is returned to a node that is configured with one witness when the VM's record is kept by two.
	ErrPaired = errors.New("two witnesses decide on this VM, and this node is configured with one")

	// ErrSplit is returned when both witnesses of a pair hold a record of their own. No order between them can be known; a
	// person has to forget one of them.
	ErrSplit = errors.New("both witnesses hold a record of their own")

	// ErrOtherInstance is returned when the witness at this address isn't the one that was meant. Its file was lost or changed.
	ErrOtherInstance = errors.New("another witness than before")
)

// Errors of a store.
var (
	// ErrCorrupt is returned for a file that isn't what this package wrote. It was not changed.
	ErrCorrupt = recordfile.ErrCorrupt

	// ErrNewerSchema is returned for a file that a newer version wrote.
	ErrNewerSchema = recordfile.ErrNewerSchema

	// ErrLocked is returned while another process has the file open.
	ErrLocked = recordfile.ErrLocked

	// ErrStopped is returned after a write failed in a way that leaves open what is on the disk. Only a restart, which
	// reads the file anew, makes the store usable again.
	ErrStopped = errors.New("witness stopped after a failed write")
)

// codes are the errors that may travel. What isn't here reaches the client as arbiter.ErrUnreachable.
var codes = []struct {
	code   string
	err    error
	status int
}{
	{"no-record", arbiter.ErrNoRecord, 404},
	{"invalid", arbiter.ErrInvalid, 400},
	{"conflict", arbiter.ErrConflict, 409},
	{"same-host", ErrSameHost, 403},
	{"forbidden", ErrForbidden, 403},
	{"paired", ErrPaired, 409},
	{"split", ErrSplit, 409},
	{"other-instance", ErrOtherInstance, 409},
}
