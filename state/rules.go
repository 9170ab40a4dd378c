package state

// CheckUpdate says why next may not take the place of old, by the rules of [Tx.Update], for whoever keeps VMs elsewhere than in a Store.
func CheckUpdate(old, next *VM) error {
	if err := next.validate(); err != nil {
		return err
	}
	return next.follows(old)
}
