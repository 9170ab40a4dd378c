package config

import (
	"fmt"
	"os/user"
	"strconv"

	"github.com/coloctl/coloctl/colo"
)

// user looks up whom QEMU runs as, with the groups that he is in, such as kvm; nil is the daemon's own user.
func (q *QEMU) user() (*colo.User, error) {
	if q.User == "" {
		return nil, nil //nolint:nilnil // see above
	}
	u, err := user.Lookup(q.User)
	if err != nil {
		return nil, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	out := &colo.User{}
	if out.UID, err = number(u.Uid); err != nil {
		return nil, err
	}
	if out.GID, err = number(u.Gid); err != nil {
		return nil, err
	}
	for _, g := range groups {
		id, err := number(g)
		if err != nil {
			return nil, err
		}
		out.Groups = append(out.Groups, id)
	}
	return out, nil
}

func number(id string) (uint32, error) {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no number of a user or group", id)
	}
	return uint32(n), nil
}
