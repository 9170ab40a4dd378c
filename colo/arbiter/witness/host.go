package witness

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

const bootID = "/proc/sys/kernel/random/boot_id"

// HostID identifies the running kernel, which containers share and virtual machines don't. It isn't the machine id because cloned machines
// have the same one, and a refused witness is worse than an unnoticed one. It is hashed, as it goes over the network.
func HostID() (string, error) {
	raw, err := os.ReadFile(bootID)
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(raw))
	if id == "" {
		return "", fmt.Errorf("%s is empty", bootID)
	}
	h := sha256.Sum256([]byte("coloctl witness host\x00" + id))
	return hex.EncodeToString(h[:16]), nil
}
