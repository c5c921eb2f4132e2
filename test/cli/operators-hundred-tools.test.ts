import { operatorsHundred } from './operators-hundred.ts'

operatorsHundred('tools')
