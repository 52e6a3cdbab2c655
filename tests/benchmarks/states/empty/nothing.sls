Nothing:
  test.nop
